// Serves HTTP on each ADDRESS:PORT, and answers with its process id.
//
// The first address is listened on by the process's first thread, each other
// one by a thread of its own. `mptcp` as the first argument makes MPTCP sockets
// by hand, as newer versions of Go do by themselves.
package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"syscall"
)

const ipprotoMPTCP = 262

func init() {
	runtime.LockOSThread() // main stays on the first thread
}

func listenMPTCP(address string) (net.Listener, error) {
	where, err := net.ResolveTCPAddr("tcp4", address)
	if err != nil {
		return nil, err
	}
	fd, err := syscall.Socket(
		syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, ipprotoMPTCP)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	file := os.NewFile(uintptr(fd), address)
	defer file.Close()
	name := &syscall.SockaddrInet4{Port: where.Port}
	copy(name.Addr[:], where.IP.To4())
	if err := syscall.Bind(fd, name); err != nil {
		return nil, os.NewSyscallError("bind", err)
	}
	if err := syscall.Listen(fd, 16); err != nil {
		return nil, os.NewSyscallError("listen", err)
	}
	return net.FileListener(file)
}

func listen(address string, mptcp bool) net.Listener {
	open := func() (net.Listener, error) { return net.Listen("tcp", address) }
	if mptcp {
		open = func() (net.Listener, error) { return listenMPTCP(address) }
	}
	listener, err := open()
	if err != nil {
		panic(err)
	}
	return listener
}

func answer(writer http.ResponseWriter, request *http.Request) {
	fmt.Fprint(writer, os.Getpid())
}

func main() {
	addresses := os.Args[1:]
	mptcp := addresses[0] == "mptcp"
	if mptcp {
		addresses = addresses[1:]
	}
	handler := http.HandlerFunc(answer)
	for _, address := range addresses[1:] {
		go func(address string) {
			runtime.LockOSThread() // main's is taken, so this is another
			http.Serve(listen(address, mptcp), handler)
		}(address)
	}
	go http.Serve(listen(addresses[0], mptcp), handler)
	select {}
}
