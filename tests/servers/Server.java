import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;

/** Server.java HOST PORT: serves HTTP, and answers with its process id. */
class Server {
    public static void main(String[] args) throws Exception {
        var where = new InetSocketAddress(args[0], Integer.parseInt(args[1]));
        var server = HttpServer.create(where, 16);
        server.createContext("/", exchange -> {
            var body = Long.toString(ProcessHandle.current().pid()).getBytes();
            exchange.sendResponseHeaders(200, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        });
        server.start();
    }
}
