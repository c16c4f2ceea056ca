// server.js plain|worker|cluster HOST PORT: serves HTTP, and answers with its
// process id. `cluster` has two workers, and ends as they do.
"use strict";
const cluster = require("cluster");
const http = require("http");
const { Worker, isMainThread, workerData } = require("worker_threads");

function serve(host, port) {
  http.createServer((request, response) => response.end(String(process.pid)))
    .listen(port, host);
}

const [mode, host, port] = isMainThread ? process.argv.slice(2) : workerData;
if (mode === "worker" && isMainThread) {
  new Worker(__filename, { workerData: [mode, host, port] });
} else if (mode === "cluster" && cluster.isPrimary) {
  cluster.on("exit", (worker, code) => process.exit(code));
  cluster.fork();
  cluster.fork();
} else {
  serve(host, Number(port));
}
