"""JSON schemas of every kind that constrained output supports, and values to tell them apart."""

from __future__ import annotations

from typing import Any


def obj(properties: dict[str, Any], required: Any = None, **more: Any) -> dict[str, Any]:
    """A closed object; all properties are required unless told."""
    needed = list(properties) if required is None else required
    base = {"type": "object", "properties": properties, "additionalProperties": False}
    return base | ({"required": needed} if needed else {}) | more


def arr(items: Any, low: int | None = None, high: int | None = None) -> dict[str, Any]:
    bounds = {"minItems": low, "maxItems": high}
    return {"type": "array", "items": items} | {k: v for k, v in bounds.items() if v is not None}


STR, INT, NUM, BOOL, NULL = ({"type": t} for t in ("string", "integer", "number", "boolean", "null"))
POINT = obj({"x": NUM, "y": NUM})

SCALARS: dict[str, dict[str, Any]] = {
    "anything": {},
    "string": STR,
    "integer": INT,
    "number": NUM,
    "boolean": BOOL,
    "null": NULL,
    "string or null": {"type": ["string", "null"]},
    "integer or boolean": {"type": ["integer", "boolean"]},
    "number or array": {"type": ["number", "array"], "maxItems": 2},
    "every type": {"type": ["string", "number", "boolean", "null", "array", "object"]},
    "minLength": {"type": "string", "minLength": 3},
    "maxLength": {"type": "string", "maxLength": 4},
    "exact length": {"type": "string", "minLength": 5, "maxLength": 5},
    "length 0": {"type": "string", "maxLength": 0},
    "length without type": {"minLength": 2, "maxLength": 3},
    "minimum": {"type": "integer", "minimum": 10},
    "maximum": {"type": "integer", "maximum": -3},
    "range": {"type": "integer", "minimum": 1, "maximum": 12},
    "wide range": {"type": "integer", "minimum": -120, "maximum": 98765},
    "negative range": {"type": "integer", "minimum": -20, "maximum": -15},
    "one integer": {"type": "integer", "minimum": 7, "maximum": 7},
    "exclusive": {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 4},
    "number range": {"type": "number", "minimum": 0, "maximum": 1},
    "number exclusive": {"type": "number", "exclusiveMinimum": -1.5, "exclusiveMaximum": 2.25},
    "number minimum": {"type": "number", "minimum": 0.125},
    "bounds without type": {"minimum": 3, "maximum": 5},
    "multiple of 5": {"type": "integer", "multipleOf": 5},
    "multiple of 7 in range": {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 100},
    "quarters": {"type": "number", "multipleOf": 0.25},
    "eighths": {"type": "number", "multipleOf": 0.125, "minimum": 0, "maximum": 10},
    "multiple of 64": {"type": "integer", "multipleOf": 64},
}

STRINGS: dict[str, dict[str, Any]] = {
    "pattern word": {"type": "string", "pattern": "^[a-z]+$"},
    "pattern part": {"type": "string", "pattern": "ab", "maxLength": 12},
    "pattern choice": {"type": "string", "pattern": "^(red|green|blue)$"},
    "pattern plate": {"type": "string", "pattern": "^[A-Z]{2,3}-[0-9]{3,4}$"},
    "pattern hex": {"type": "string", "pattern": "^#[0-9a-fA-F]{6}$"},
    "pattern version": {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
    "pattern quoted": {"type": "string", "pattern": '^"[a-z]*"$'},
    "pattern backslash": {"type": "string", "pattern": r"^[a-z]\\[a-z]$"},
    "pattern unicode": {"type": "string", "pattern": "^[äöü]{1,3}$"},
    "pattern slash": {"type": "string", "pattern": "^/[a-z]+/[a-z]+$"},
    "pattern optional": {"type": "string", "pattern": "^a?b?c?$"},
    "pattern empty": {"type": "string", "pattern": "^$"},
    "pattern with length": {"type": "string", "pattern": "^a*b*$", "minLength": 2, "maxLength": 6},
    "date": {"type": "string", "format": "date"},
    "time": {"type": "string", "format": "time"},
    "date-time": {"type": "string", "format": "date-time"},
    "duration": {"type": "string", "format": "duration"},
    "email": {"type": "string", "format": "email"},
    "hostname": {"type": "string", "format": "hostname"},
    "ipv4": {"type": "string", "format": "ipv4"},
    "ipv6": {"type": "string", "format": "ipv6"},
    "uuid": {"type": "string", "format": "uuid"},
    "uri": {"type": "string", "format": "uri"},
}

CHOICES: dict[str, dict[str, Any]] = {
    "enum of strings": {"enum": ["red", "green", "blue", "dark blue"]},
    "enum of prefixes": {"enum": ["a", "ab", "abc"]},
    "enum mixed": {"enum": ["x", 1, -2.5, None, True, [1, 2], {"a": [False]}]},
    "enum unicode": {"enum": ["ä", "日本", "😀", 'quote"', "back\\slash", "new\nline", "\u0001"]},
    "enum with type": {"type": "string", "enum": ["a", "b", 3]},
    "enum of one": {"enum": [0]},
    "const string": {"const": "fixed"},
    "const null": {"const": None},
    "const number": {"const": 3.5},
    "const object": {"const": {"a": 1, "b": ["c", {}]}},
    "const empty array": {"const": []},
    "anyOf scalars": {"anyOf": [INT, {"type": "string", "maxLength": 3}]},
    "anyOf objects": {"anyOf": [obj({"a": INT}), obj({"b": STR})]},
    "anyOf same key": {"anyOf": [obj({"kind": {"const": "a"}, "v": INT}), obj({"kind": {"const": "b"}, "w": BOOL})]},
    "anyOf nested": {"anyOf": [{"anyOf": [NULL, BOOL]}, {"anyOf": [arr(INT, 1, 2), POINT]}]},
    "anyOf with siblings": {"type": "object", "properties": {"a": INT}, "required": ["a"],
                            "anyOf": [{"properties": {"b": INT}, "required": ["b"]},
                                      {"properties": {"c": INT}, "required": ["c"]}]},
    "optional value": obj({"a": {"anyOf": [STR, NULL]}}),
    "oneOf types": {"oneOf": [STR, INT, NULL]},
    "oneOf tagged": {"oneOf": [obj({"t": {"const": 1}, "a": STR}), obj({"t": {"const": 2}, "b": INT})]},
    "oneOf array": {"oneOf": [arr(INT, 1), BOOL]},
    "allOf bounds": {"allOf": [{"type": "integer"}, {"minimum": 2}, {"maximum": 9}]},
    "allOf objects": {"allOf": [{"type": "object", "properties": {"a": INT}, "required": ["a"]},
                                {"type": "object", "properties": {"b": STR}, "required": ["b"]}]},
    "allOf one": {"allOf": [{"enum": [1, 2, 3]}]},
    "allOf enum and type": {"allOf": [{"enum": ["a", 1, "b"]}, {"type": "string"}]},
}  # fmt: skip

ARRAYS: dict[str, dict[str, Any]] = {
    "array": {"type": "array"},
    "array of integers": arr(INT),
    "array of strings": arr(STR, 0, 3),
    "array of at least 2": arr({"enum": [0, 1]}, 2),
    "array of 3": arr(INT, 3, 3),
    "array of none": arr(INT, 0, 0),
    "array of nothing": {"type": "array", "items": False},
    "array of arrays": arr(arr(BOOL, 1, 2), 1, 3),
    "matrix": arr(arr({"type": "integer", "minimum": 0, "maximum": 9}, 2, 2), 2, 2),
    "array of objects": arr(POINT, 1, 2),
    "array of either": arr({"anyOf": [INT, NULL, {"const": "x"}]}, 1, 4),
    "tuple": {"type": "array", "prefixItems": [STR, INT, BOOL], "items": False, "minItems": 3},
    "tuple and rest": {"type": "array", "prefixItems": [STR], "items": INT, "minItems": 1, "maxItems": 4},
    "optional tuple": {"type": "array", "prefixItems": [INT, INT], "items": False},
    "array without type": {"items": INT, "minItems": 1},
    "long array": arr({"const": 1}, 20, 22),
    "array of dates": arr({"type": "string", "format": "date"}, 1, 2),
}

OBJECTS: dict[str, dict[str, Any]] = {
    "object": {"type": "object"},
    "empty object": obj({}),
    "one key": obj({"a": INT}),
    "all required": obj({"name": STR, "age": {"type": "integer", "minimum": 0, "maximum": 150}, "ok": BOOL}),
    "all optional": obj({"a": INT, "b": STR, "c": BOOL}, []),
    "some required": obj({"a": INT, "b": STR, "c": BOOL, "d": NULL}, ["b", "d"]),
    "open object": {"type": "object", "properties": {"a": INT}, "required": ["a"]},
    "required without properties": {"type": "object", "required": ["a", "b"], "additionalProperties": INT},
    "map of integers": {"type": "object", "additionalProperties": INT},
    "map of objects": {"type": "object", "additionalProperties": POINT},
    "properties and map": {"type": "object", "properties": {"id": INT}, "required": ["id"],
                           "additionalProperties": {"type": "string"}},
    "minProperties": {"type": "object", "additionalProperties": BOOL, "minProperties": 1},
    "maxProperties": {"type": "object", "additionalProperties": INT, "maxProperties": 2},
    "patternProperties": {"type": "object", "patternProperties": {"^n_": INT, "^s_": STR},
                          "additionalProperties": False},
    "patternProperties and rest": {"type": "object", "patternProperties": {"^x": INT}, "additionalProperties": BOOL},
    "unicode keys": obj({"naïve": INT, "日本語": STR, "emoji 😀": BOOL}),
    "odd keys": obj({"": INT, 'q"uote': INT, "back\\slash": INT, "tab\t": INT, "a b": INT, "$ref": INT, "type": INT}),
    "keys with one beginning": obj({"a": INT, "aa": INT, "aaa": INT}, ["aaa"]),
    "forbidden key": {"type": "object", "properties": {"a": INT, "b": False}, "additionalProperties": BOOL},
    "nested": obj({"user": obj({"name": STR, "address": obj({"city": STR, "zip": {"pattern": "^[0-9]{5}$",
                  "type": "string"}})}), "tags": arr(STR, 0, 3)}),
    "deep": obj({"a": obj({"b": obj({"c": obj({"d": obj({"e": arr(arr(INT, 1, 1), 1, 1)})})})})}),
    "many keys": obj({f"key_{i}": {"enum": [i]} for i in range(30)}, []),
    "wide required": obj({f"k{i}": BOOL for i in range(25)}),
    "object with annotations": {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "urn:x",
                                "title": "T", "description": "D", "type": "object", "default": {}, "examples": [1],
                                "$comment": "c", "deprecated": True, "readOnly": True,
                                "properties": {"a": {"type": "integer", "title": "A", "default": 3}}},
    "properties without type": {"properties": {"a": INT}, "required": ["a"], "additionalProperties": False},
    "weather call": obj({"city": STR, "unit": {"enum": ["celsius", "fahrenheit"]}, "days": {"type": "integer",
                        "minimum": 1, "maximum": 7}}, ["city"]),
    "invoice": obj({"number": {"type": "string", "pattern": "^INV-[0-9]{4}$"},
                    "date": {"type": "string", "format": "date"},
                    "lines": arr(obj({"what": {"type": "string", "maxLength": 20}, "price": {"type": "number",
                                 "minimum": 0}, "count": {"type": "integer", "minimum": 1}}), 1, 3),
                    "paid": BOOL, "note": {"type": ["string", "null"]}}),
    "reasoning steps": obj({"steps": arr(obj({"explanation": STR, "output": STR}), 1, 3), "final_answer": STR}),
}  # fmt: skip

REFERENCES: dict[str, dict[str, Any]] = {
    "ref": {"$ref": "#/$defs/p", "$defs": {"p": POINT}},
    "refs": obj({"a": {"$ref": "#/$defs/s"}, "b": arr({"$ref": "#/$defs/s"}, 0, 2)}, **{"$defs": {"s": {"enum": [1]}}}),
    "ref chain": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/c"}, "c": BOOL}, "$ref": "#/$defs/a"},
    "definitions": obj({"a": {"$ref": "#/definitions/x"}}, definitions={"x": {"type": "integer", "minimum": 0}}),
    "ref with siblings": {"$defs": {"n": INT}, "$ref": "#/$defs/n", "minimum": 3, "maximum": 8},
    "ref into properties": obj({"a": {"type": "string", "maxLength": 2}, "b": {"$ref": "#/properties/a"}}),
    "ref escaped": {"$defs": {"a/b~c": {"const": 1}}, "$ref": "#/$defs/a~1b~0c"},
    "linked list": {"$defs": {"node": obj({"v": INT, "next": {"anyOf": [NULL, {"$ref": "#/$defs/node"}]}})},
                    "$ref": "#/$defs/node"},
    "tree": obj({"name": {"type": "string", "maxLength": 5}, "children": arr({"$ref": "#"}, 0, 2)}),
    "optional tree": obj({"left": {"$ref": "#"}, "right": {"$ref": "#"}, "v": {"enum": [0, 1]}}, ["v"]),
    "expression": {"$defs": {"e": {"anyOf": [{"type": "integer"}, obj({"op": {"enum": ["+", "*"]},
                   "args": arr({"$ref": "#/$defs/e"}, 2, 2)})]}}, "$ref": "#/$defs/e"},
    "mutual": {"$defs": {"a": obj({"b": {"anyOf": [{"$ref": "#/$defs/b"}, NULL]}}),
                         "b": obj({"a": {"anyOf": [NULL, {"$ref": "#/$defs/a"}]}})}, "$ref": "#/$defs/a"},
    "any JSON": {"$defs": {"j": {"anyOf": [STR, NUM, BOOL, NULL, arr({"$ref": "#/$defs/j"}, 0, 2),
                 {"type": "object", "additionalProperties": {"$ref": "#/$defs/j"}}]}}, "$ref": "#/$defs/j"},
    "ui": {"$defs": {"el": obj({"tag": {"enum": ["div", "p", "b"]}, "text": {"type": "string", "maxLength": 6},
           "in": arr({"$ref": "#/$defs/el"}, 0, 2)})}, "$ref": "#/$defs/el"},
}  # fmt: skip

SCHEMAS: dict[str, dict[str, Any]] = SCALARS | STRINGS | CHOICES | ARRAYS | OBJECTS | REFERENCES

VALUES: list[Any] = [
    None, True, False, 0, 1, 2, 3, 5, 7, 10, 12, -3, -16, -20, 35, 100, 151, 4096, 98765, 0.25, 0.5, 1.5, 2.25, 3.5,
    -2.5, 9.99, 0.125, "", "a", "ab", "abc", "abcd", "x", "red", "dark blue", "fixed", "ä", "öü", "日本", "😀",
    'quote"', "back\\slash", "new\nline", "\u0001", "aab", "aabb", "AB-123", "#00ffAA", "1.20.3", '"q"', "a\\b", "/a/b",
    "2024-02-29", "12:30:00Z", "2024-02-29T12:30:00Z", "P3D", "me@example.org", "example.org", "127.0.0.1", "::1",
    "123e4567-e89b-12d3-a456-426614174000", "https://example.org/a?b=c", [], [0], [1, 2], [0, 1], [1, 2, 3], ["a"],
    ["a", 1, True], ["a", 1], [True], [[True]], [[1, 2], [3, 4]], [None, "x", 3], [1] * 20, [1] * 23, [{}],
    [{"x": 1, "y": 2.5}], ["2024-02-29"], {}, {"a": 1}, {"a": "1"}, {"b": "s"}, {"a": None}, {"a": 1, "b": "s"},
    {"a": 1, "b": 2}, {"a": 1, "c": 2}, {"x": 1, "y": 2.5}, {"a": 1, "b": "s", "c": True}, {"b": "s", "d": None},
    {"name": "n", "age": 151, "ok": True}, {"name": "n", "age": 15, "ok": True}, {"id": 1, "z": "s"}, {"n_1": 1},
    {"s_1": "s"}, {"n_1": "s"}, {"xa": 1}, {"xa": True}, {"q": True}, {"kind": "a", "v": 1}, {"kind": "a", "w": True},
    {"t": 1, "a": "s"}, {"t": 2, "a": "s"}, {"v": 1, "next": None}, {"v": 1, "next": {"v": 2, "next": None}},
    {"name": "n", "children": [{"name": "m", "children": []}]}, {"v": 1}, {"left": {"v": 0}, "v": 1}, {"b": None},
    {"b": {"a": None}}, {"op": "+", "args": [1, {"op": "*", "args": [2, 3]}]}, {"op": "+", "args": [1]}, {"aaa": 1},
    {"a": 1, "aaa": 1}, {"city": "c", "unit": "kelvin"}, {"city": "c", "unit": "celsius", "days": 7},
    {"tag": "p", "text": "t", "in": []}, {"key_0": 0, "key_29": 29}, {"key_0": 1}, {"a": 1, "b": ["c", {}]},
]  # fmt: skip
