"""What the Python runner in the folder of the first argument makes of the cases on stdin, a JSON array.

Of each a list of texts or null, where it raises: the arguments of a `command`, or the message of a `log` action.
"""

import asyncio
import json
import sys

sys.path.insert(0, sys.argv[1])
from ai.backend.kernel import service, service_actions

assert service.__file__.startswith(sys.argv[1]), service.__file__


class Recorder:
    """Takes messages as the runner's logger does: with doubled braces."""

    def info(self, message):
        self.message = message.format()


async def result(case):
    parser = service.ServiceParser(dict(case["variables"]))
    if "command" in case:
        parser.services["s"] = service.ServiceDefinition(command=case["command"])
    else:
        action = {"action": "log", "args": {"message": case["message"]}}
        parser.services["s"] = service.ServiceDefinition(command=[], prestart_actions=[action])
    service_actions.logger = recorder = Recorder()
    try:
        argv, _ = await parser.start_service("s", [], {})
        return argv if "command" in case else [recorder.message]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None


async def main():
    return [await result(case) for case in json.load(sys.stdin)]


json.dump(asyncio.run(main()), sys.stdout)
