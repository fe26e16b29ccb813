"""What CPython makes of the cases on stdin, a JSON array: of each a text or null, where Python raises."""

import json
import sys


def of_template(case):
    return case["template"].format_map(case["variables"])


def of_argv(case):
    argv = [word.format_map(case["variables"]) for word in case["command"]]
    arguments = dict(case["defaults"])
    arguments.update(case["chosen"])
    for flag, value in arguments.items():
        argv += [flag] + ([] if value is None else [value] if isinstance(value, str) else value)
    return argv


def result(case):
    try:
        return (of_argv if "command" in case else of_template)(case)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None


json.dump([result(case) for case in json.load(sys.stdin)], sys.stdout)
