"""Benchmark runner over every installed architecture plugin."""
