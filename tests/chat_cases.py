"""Conversations that reach the branches of published chat templates."""

SYSTEM = {"role": "system", "content": "  You are terse & <polite>.\n"}
USER = {"role": "user", "content": " What is 2+2? Ünïcödé 🙂 \n"}
ANSWER = {"role": "assistant", "content": "It is 4.\n"}
THOUGHTFUL = {"role": "assistant", "content": "<think>\n2+2\n\n</think>\n\nIt is 4."}
REASONED = {"role": "assistant", "reasoning_content": "\nadd them\n", "content": "\nIt is 4."}
AGAIN = {"role": "user", "content": "And 3+3?"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a place: °C, <b>wind</b> & 'rain'",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string", "enum": ["Köln", "東京"]}},
            "required": ["place"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "now", "parameters": {}}}


def call(name, arguments, content=""):
    function = {"name": name, "arguments": arguments}
    return {
        "role": "assistant",
        "content": content,
        "tool_calls": [{"type": "function", "function": function}],
    }


ASK_WEATHER = call("get_weather", {"place": "東京", "days": 2, "hourly": False})
TWO_CALLS = {
    "role": "assistant",
    "content": "Let me see.",
    "tool_calls": [*ASK_WEATHER["tool_calls"], *call("now", '{"zone": "UTC"}')["tool_calls"]],
}
RESULT = {"role": "tool", "name": "get_weather", "content": '{"celsius": 21}'}

CONVERSATIONS = {
    "one-question": [USER],
    "system": [SYSTEM, USER],
    "system-alone": [SYSTEM],
    "several-turns": [SYSTEM, USER, ANSWER, AGAIN],
    "ends-with-an-answer": [USER, ANSWER],
    "late-system": [USER, ANSWER, SYSTEM, AGAIN],
    "text-parts": [
        {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "user", "content": [{"type": "text", "text": " a "}, {"type": "image"}]},
    ],
    "thoughts-before-a-question": [USER, THOUGHTFUL, AGAIN],
    "thoughts-at-the-end": [USER, THOUGHTFUL],
    "reasoning-at-the-end": [USER, REASONED],
    "reasoning-before-a-question": [USER, REASONED, AGAIN],
    "null-fields": [USER, {**ANSWER, "tool_calls": None}, AGAIN],
    "tool-called": [USER, ASK_WEATHER, RESULT],
    "tool-answered": [SYSTEM, USER, ASK_WEATHER, RESULT, ANSWER, AGAIN],
    "two-tools-called": [USER, TWO_CALLS, RESULT, {**RESULT, "content": "12:00"}],
    "two-answers-in-a-row": [USER, ANSWER, ANSWER],
    "structured-result": [USER, ASK_WEATHER, {**RESULT, "content": {"celsius": [21, 22]}}],
}

OPTIONS = {
    "plain": {},
    "no-generation-prompt": {"add_generation_prompt": False},
    "one-tool": {"tools": [WEATHER]},
    "two-tools": {"tools": [WEATHER, CLOCK]},
    "no-tools": {"tools": []},
}

# Variables each template reads beside messages, tools and special tokens. Without a date a run at
# midnight would compare two days.
VARIABLES = {
    "llama3.2": [
        {"date_string": "26 Jul 2024"},
        {"date_string": "26 Jul 2024", "tools_in_user_message": False},
    ],
    "qwen3": [{}, {"enable_thinking": True}, {"enable_thinking": False}],
    "gemma3": [{}],
}
SPECIAL_TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>"}
