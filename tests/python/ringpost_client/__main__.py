"""Sends and receives from a terminal."""

import argparse
import sys
import time

from . import CaughtUp, Client, Disconnected, Received, Sent, Settings, State, Unsent


def main():
    arguments = _arguments()
    host, _, port = arguments.server.rpartition(":")
    settings = Settings(host, int(port), arguments.ca, arguments.device, lambda: arguments.token)
    client = Client(settings, State(arguments.state))
    awaited = set()
    if arguments.to:
        awaited.add(client.send(arguments.to, arguments.text.encode()))
    until = time.monotonic() + arguments.seconds
    failed = caught_up = False
    while time.monotonic() < until and not client.stopped:
        for event in client.poll(min(1.0, until - time.monotonic())):
            match event:
                case Received():
                    print(f"{event.from_user}: {event.envelope.decode(errors='replace')}")
                case Sent():
                    awaited.discard(event.message_number)
                case Unsent():
                    awaited.discard(event.message_number)
                    failed = True
                    print(f"not sent: {event.code}", file=sys.stderr)
                case CaughtUp():
                    caught_up = True
                case Disconnected():
                    print(f"disconnected: {event.why} {event.text}", file=sys.stderr)
                    failed |= event.then != "reconnect"
                    if event.then == "new token":
                        return 1
        if caught_up and not awaited and not arguments.stay:
            break
    client.close()
    return 1 if failed or awaited else 0


def _arguments():
    parser = argparse.ArgumentParser(
        prog="ringpost_client",
        description="Send one message, take what waits, and leave; with --stay, go on receiving.",
    )
    parser.add_argument("--server", default="127.0.0.1:7443", metavar="HOST:PORT")
    parser.add_argument("--ca", default="ringpost-data/ca.pem", metavar="FILE")
    parser.add_argument("--device", required=True, help="the device in the token")
    parser.add_argument("--token", required=True, help="see `ringpost token --help`")
    parser.add_argument("--state", required=True, metavar="FILE", help="made when it is missing")
    parser.add_argument("--to", metavar="USER")
    parser.add_argument("--text", default="hello")
    parser.add_argument("--seconds", type=float, default=10.0, help="give up, or stop, after this")
    parser.add_argument("--stay", action="store_true")
    return parser.parse_args()


sys.exit(main())
