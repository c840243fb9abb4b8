"""A long way: whatever one end of a connection says, the other hears a while later.

    delay.py SECONDS LISTEN TO ...

Connections to each port LISTEN of 127.0.0.1 lead to the port TO; bytes take SECONDS, and only connecting does
not. It takes the place of netem(8), which not every kernel has.
"""

import asyncio
import contextlib
import functools
import sys
from collections import deque


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
    """Pass on what comes, in its order."""
    loop = asyncio.get_running_loop()
    under_way: deque[tuple[float, bytes]] = deque()
    came = asyncio.Event()

    async def deliver() -> None:
        while True:
            await came.wait()
            came.clear()
            while under_way:
                due, data = under_way.popleft()
                await asyncio.sleep(max(0.0, due - loop.time()))
                if not data:
                    return
                writer.write(data)

    delivering = asyncio.create_task(deliver())
    try:
        data = b"-"
        while data:
            data = await reader.read(2**16)
            under_way.append((loop.time() + seconds, data))
            came.set()
        await delivering
    finally:
        delivering.cancel()


async def _relay(to: int, seconds: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        there, back = await asyncio.open_connection("127.0.0.1", to)
        ways = [_carry(reader, back, seconds), _carry(there, writer, seconds)]
        tasks = [asyncio.create_task(way) for way in ways]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        back.close()
    writer.close()


async def main() -> None:
    """Do what the command line says."""
    seconds, ports = float(sys.argv[1]), list(map(int, sys.argv[2:]))
    for port, to in zip(ports[::2], ports[1::2], strict=True):
        await asyncio.start_server(functools.partial(_relay, to, seconds), "127.0.0.1", port)
    await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(main())
