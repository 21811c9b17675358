"""A py-libp2p node that a test drives by JSON lines; the protocol is in ../README.md."""

import json
import math
import os
import sys

import trio

# Answers go where stdout was; what a library prints goes to stderr, and can be in no line of ours.
answers = os.dup(1)
os.dup2(2, 1)

from commands import Commands, reason  # noqa: E402


async def write_lines(lines):
    """Never in the way of the node: a test that does not read yet fills the pipe."""
    async with trio.lowlevel.FdStream(answers) as output, lines:
        async for line in lines:
            await output.send_all(json.dumps(line).encode() + b"\n")


async def run(commands, write, id, command, seconds, **fields):
    try:
        known = commands.table.get(command)
        if known is None:
            raise ValueError(f"no command {command}")
        with trio.fail_after(seconds):
            write({"id": id, "ok": await known(**fields)})
    except Exception as error:
        write({"id": id, "error": reason(error)})


async def read_lines():
    received = bytearray()
    async with trio.lowlevel.FdStream(os.dup(0)) as source:
        async for chunk in source:
            received += chunk
            *lines, rest = received.split(b"\n")
            for line in lines:
                yield json.loads(line)
            received = bytearray(rest)


async def main():
    lines, output = trio.open_memory_channel(math.inf)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_lines, output)
        commands = Commands(nursery, lines.send_nowait)
        async for line in read_lines():
            nursery.start_soon(lambda line: run(commands, lines.send_nowait, **line), line)
        # A closed stdin ends the peer; so does the process of the test.
        commands.stop()
        nursery.cancel_scope.cancel()


try:
    trio.run(main)
except BaseException as error:
    print(reason(error), file=sys.stderr)
    raise
