"""asyncio_server.py PORT: answers with its process id, on both loopbacks."""

import asyncio
import os
import sys


async def answer(reader, writer):
    writer.write(str(os.getpid()).encode())
    await writer.drain()
    writer.close()


async def main():
    hosts = ["127.0.0.1", "::1"]
    server = await asyncio.start_server(answer, hosts, int(sys.argv[1]))
    async with server:
        await server.serve_forever()


asyncio.run(main())
