"""A server as many are: its port is written into it, and open to everybody."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = 8080


class Greeter(BaseHTTPRequestHandler):
    """Answers each GET with a greeting, and counts them."""

    greeted = 0

    def do_GET(self) -> None:
        Greeter.greeted += 1
        body = f"hello, visitor {Greeter.greeted}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    print(f"serving on port {PORT}")
    ThreadingHTTPServer(("", PORT), Greeter).serve_forever()
