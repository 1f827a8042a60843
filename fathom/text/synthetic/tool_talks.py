"""Dialogues in which the assistant calls functions, in the OpenAI form, for fine-tuning; and as plain text.

    user -> assistant {"tool_calls"} -> tool (its output) -> assistant, who says the output in words
    user -> assistant (no function fits: a plain answer)

Half of the functions have made-up names and parameters, so that a call can only be written by reading the definitions.
Control tokens are the chat template's and cannot be in plain text: there, calls are lines of JSON.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from fathom.text.synthetic.grammar import COLOURS, PLACES, capital
from fathom.text.synthetic.knowledge import COUNTRIES, DAYS
from fathom.text.synthetic.vocabulary import NOUNS, VERBS, name, number

Line = dict[str, Any]
WEATHER = ("sunny", "cloudy", "rainy", "windy", "foggy", "snowy")


@dataclass(frozen=True)
class Call:
    """One use of one function."""

    tool: Line
    request: str
    arguments: dict[str, Any]
    output: str
    answer: str


def _tool(title: str, about: str, **parameters: str) -> Line:
    properties = {key: {"type": kind} for key, kind in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    return {"type": "function", "function": {"name": title, "description": about, "parameters": schema}}


def _weather(rng: random.Random) -> Call:
    city, sky, degrees = COUNTRIES[rng.choice(sorted(COUNTRIES))][0], rng.choice(WEATHER), rng.randint(-10, 38)
    ask = rng.choice(("What is the weather in {}?", "How is the weather in {} today?", "Weather in {}, please."))
    output = json.dumps({"weather": sky, "temperature": degrees})
    return Call(_tool("get_weather", "Weather of a city", city="string"), ask.format(city), {"city": city}, output,
                f"It is {sky} in {city}, {degrees} degrees.")  # fmt: skip


def _calculate(rng: random.Random) -> Call:
    a, b, sign = number(rng), number(rng), rng.choice("+-*")
    result = a + b if sign == "+" else a - b if sign == "-" else a * b
    return Call(_tool("calculate", "Compute an expression", expression="string"), f"Please calculate {a} {sign} {b}.",
                {"expression": f"{a} {sign} {b}"}, str(result), f"{a} {sign} {b} = {result}.")  # fmt: skip


def _reminder(rng: random.Random) -> Call:
    day, hour, what = rng.choice(DAYS), rng.randint(1, 12), f"{rng.choice(VERBS)} the {rng.choice(NOUNS)}"
    return Call(_tool("set_reminder", "Remember something", text="string", day="string", hour="integer"),
                f"Remind me on {day} at {hour} to {what}.", {"text": what, "day": day, "hour": hour}, "ok",
                f"I will remind you on {day} at {hour} to {what}.")  # fmt: skip


def _message(rng: random.Random) -> Call:
    who, place = name(rng), rng.choice(PLACES)
    text = f"I am at the {place}."
    return Call(_tool("send_message", "Send a text to a person", to="string", text="string"),
                rng.choice((f'Send {who} the message "{text}"', f"Tell {who}: {text}")), {"to": who, "text": text},
                "sent", f"I have sent your message to {who}.")  # fmt: skip


def _lookup(rng: random.Random) -> Call:
    who, phone = name(rng), "".join(rng.choice("0123456789") for _ in range(rng.randint(4, 8)))
    return Call(_tool("find_phone", "Phone number of a person", name="string"), f"What is the phone number of {who}?",
                {"name": who}, json.dumps({"phone": phone}), f"The phone number of {who} is {phone}.")  # fmt: skip


def _light(rng: random.Random) -> Call:
    room, colour = rng.choice(("kitchen", "bedroom", "bathroom", "attic", "cellar", "hall")), rng.choice(COLOURS)
    return Call(_tool("set_light", "Color of the light in a room", room="string", color="string"),
                f"Make the light in the {room} {colour}.", {"room": room, "color": colour}, "done",
                f"The light in the {room} is {colour} now.")  # fmt: skip


def _invented(rng: random.Random) -> Call:
    """A function of any name; the request gives the values of its parameters."""
    verb, noun = rng.choice(VERBS), rng.choice(NOUNS)
    keys = rng.sample([word for word in NOUNS if len(word) < 6], rng.randint(1, 3))
    arguments: dict[str, Any] = {}
    for key in keys:
        arguments[key] = rng.choice((number(rng, 3), rng.choice(NOUNS), name(rng)))
    kinds = {key: "integer" if isinstance(value, int) else "string" for key, value in arguments.items()}
    said = ", ".join(f"{key} {value}" for key, value in arguments.items())
    output = rng.choice((rng.choice(NOUNS), str(number(rng))))
    return Call(_tool(f"{verb}_{noun}", f"{capital(verb)} a {noun}", **kinds), f"Please {verb} the {noun} with {said}.",
                arguments, output, f"The result is {output}.")  # fmt: skip


CALLS = (_weather, _calculate, _reminder, _message, _lookup, _light, *[_invented] * 6)
CHATTER = (
    ("Hello!", "Hello! How can I help you?"),
    ("Thank you!", "You are welcome!"),
    ("Who are you?", "I am minnow, a small language model."),
    ("How are you?", "I am doing well, thank you!"),
    ("What can you do?", "I can chat, and call the functions that I was given."),
)


def tool_dialogue(rng: random.Random) -> Line:
    """{"tools", "messages"}: one or two requests, among one to three functions."""
    uses = [rng.choice(CALLS)(rng) for _ in range(rng.choice((1, 1, 1, 2)))]
    tools = {use.tool["function"]["name"]: use.tool for use in uses}
    if rng.random() < 0.6:
        other = rng.choice(CALLS)(rng).tool
        tools.setdefault(other["function"]["name"], other)
    listed = list(tools.values())
    rng.shuffle(listed)
    messages: list[Line] = []
    if rng.random() < 0.2:
        question, answer = rng.choice(CHATTER)
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        uses = uses[: rng.randint(0, 1)]
    for use in uses:
        function = {"name": use.tool["function"]["name"], "arguments": json.dumps(use.arguments, ensure_ascii=False)}
        messages += [
            {"role": "user", "content": use.request},
            {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]},
            {"role": "tool", "content": use.output}, {"role": "assistant", "content": use.answer},
        ]  # fmt: skip
    return {"tools": listed, "messages": messages}


def tool_text(rng: random.Random) -> str:
    """The same without control tokens."""
    talk = tool_dialogue(rng)
    lines = [f"Function: {_signature(tool['function'])}" for tool in talk["tools"]]
    for message in talk["messages"]:
        for call in message.get("tool_calls", ()):
            arguments = json.loads(call["function"]["arguments"])
            said = json.dumps({"name": call["function"]["name"], "arguments": arguments}, ensure_ascii=False)
            lines.append(f"Call: {said}")
        if message["content"] is not None:
            speaker = {"user": "User", "assistant": "Assistant", "tool": "Result"}[message["role"]]
            lines.append(f"{speaker}: {message['content']}")
    return "\n".join(lines)


def _signature(function: Line) -> str:
    taken = ", ".join(f"{key}: {kind['type']}" for key, kind in function["parameters"]["properties"].items())
    return f"{function['name']}({taken}): {function['description']}"
