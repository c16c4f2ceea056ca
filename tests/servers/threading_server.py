"""threading_server.py HOST PORT: serves HTTP with a thread for each request.

The server itself is made on a thread that is not the first one.
"""

import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(os.getpid()).encode())


def serve():
    ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Answer).serve_forever()


threading.Thread(target=serve).start()
