"""Hands the agent's own code runner client to the test harness.

Requests come in as JSON lines on stdin, answers leave as JSON lines on stdout, matched by "id". Every request
is a task of its own, so a status or an interrupt goes out while a batch is still being read. The client class is
used as the agent uses it: nothing is overridden but the two addresses.
"""

import asyncio
import base64
import inspect
import json
import sys
import uuid

from ai.backend.agent.kernel import (
    AbstractCodeRunner,
    default_api_version,
    default_client_features,
)
from ai.backend.agent.types import AgentEventData

# A request carries texts of a megabyte and more in one line.
LINE_LIMIT_BYTES = 64 * 2**20
FLUSH_TIMEOUT_SECS = 2.0


class LoopbackCodeRunner(AbstractCodeRunner):
    def __init__(self, replin, replout, identity, **kwargs):
        super().__init__(*identity, **kwargs)
        self.addresses = (f"tcp://127.0.0.1:{replin}", f"tcp://127.0.0.1:{replout}")

    async def get_repl_in_addr(self):
        return self.addresses[0]

    async def get_repl_out_addr(self):
        return self.addresses[1]


class NoEvents:
    """Stands in for the producer of events, which needs the manager's Redis: what a client tells the manager is dropped."""

    async def produce_event(self, event, **_):
        pass


def identity():
    """What a client is told of itself: 23.9 and later want the session's id and where to send events, too."""
    if "event_producer" in inspect.signature(AbstractCodeRunner.__init__).parameters:
        return (uuid.uuid4(), uuid.uuid4(), NoEvents())
    return (uuid.uuid4(),)


def as_stage(results):
    """One stage from its results: the `continued` ones, then the one that ended it."""
    last = results[-1]
    console = [tuple(item) for result in results for item in result["console"] or ()]

    def text(kind):
        return "".join(data for item_kind, data in console if item_kind == kind)

    return {
        "status": last["status"],
        "exitCode": last["exitCode"],
        "options": last["options"],
        "stdout": text("stdout"),
        "stderr": text("stderr"),
        "console": console,
    }


class Driver:
    def __init__(self, replin, replout):
        self.ports = (replin, replout)
        self.client = None

    async def op_open(self, _):
        self.client = await LoopbackCodeRunner.new(
            *self.ports, identity(), client_features=default_client_features
        )

    async def op_close(self, _):
        await self.client.close()
        self.client = None

    async def run(self, request, first_feed):
        """One run as the agent's request handlers drive it, up to the result that ends it."""
        client = self.client
        run_id = uuid.uuid4().hex
        answers = list(request.get("answers", ()))
        stages, open_stage, feed = [], [], first_feed
        while True:
            await client.attach_output_queue(run_id)
            if feed is not None:
                await feed()
            feed = None
            result = await client.get_next_result(
                api_ver=default_api_version, flush_timeout=FLUSH_TIMEOUT_SECS
            )
            open_stage.append(result)
            if result["status"] == "continued":
                continue
            stages.append(as_stage(open_stage))
            open_stage = []
            if result["status"] in ("finished", "exec-timeout"):
                return stages
            if result["status"] == "waiting-input":
                if not answers:
                    raise RuntimeError(f"asked for input, but no answer is left: {stages[-1]}")
                answer = answers.pop(0)
                feed = lambda: client.feed_input(answer)  # noqa: E731

    async def op_batch(self, request):
        return await self.run(request, lambda: self.client.feed_batch(request["opts"]))

    async def op_query(self, request):
        return await self.run(request, lambda: self.client.feed_code(request["code"]))

    async def op_input(self, request):
        await self.client.feed_input(request["text"])

    async def op_interrupt(self, _):
        await self.client.feed_interrupt()

    async def op_status(self, _):
        return await self.client.feed_and_get_status()

    async def op_complete(self, request):
        return await self.client.feed_and_get_completion(request["code"], request["opts"])

    async def op_event(self, request):
        await self.client.feed_event(AgentEventData(type=request["type"], data=request["data"]))

    async def op_apps(self, _):
        return await self.client.feed_service_apps()

    async def op_start_service(self, request):
        return await self.client.feed_start_service(request["info"])

    async def op_start_model_service(self, request):
        return await self.client.feed_start_model_service(request["info"])

    async def op_shutdown_service(self, request):
        await self.client.feed_shutdown_service(request["name"])

    async def op_raw(self, request):
        """Frames that the client itself would never send, over its own socket."""
        frames = [base64.b64decode(frame) for frame in request["frames"]]
        await self.client.input_sock.send_multipart(frames)

    async def answer(self, request):
        reply = {"id": request["id"]}
        try:
            reply["value"] = await self.while_reading(request)
        except Exception as error:
            reply["error"] = f"{type(error).__name__}: {error}"
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()

    async def while_reading(self, request):
        """A read loop that died would leave the request waiting for ever: say so instead."""
        work = asyncio.ensure_future(getattr(self, "op_" + request["op"])(request))
        reading = self.client.read_task if self.client is not None else None
        if reading is None or request["op"] in ("open", "close"):
            return await work
        await asyncio.wait({work, reading}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        work.cancel()
        raise RuntimeError("the agent's read loop has ended")


async def main(replin, replout):
    lines = asyncio.StreamReader(limit=LINE_LIMIT_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    driver = Driver(replin, replout)
    tasks = set()
    while line := await lines.readline():
        task = asyncio.create_task(driver.answer(json.loads(line)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


asyncio.run(main(*sys.argv[1:3]))
