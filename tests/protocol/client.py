#!/usr/bin/env python3
"""A second implementation of the protocol, written from docs/protocol.md and docs/protocol-calls.md alone.

    client.py messages PATH     an echo server of streams:  narrows serve-echo PATH
    client.py echo-calls PATH   an RPC echo server:    narrows serve-echo --calls PATH, with --echo-method 0
    client.py calls PATH        a server with the methods of tests/rpc/protocol.rs
    client.py goodbye PATH      the same server, which is shut down while this client calls it

tests/rpc/protocol.rs runs all modes. The client proves that the pages say enough, not that it is fast: it polls, so
its own flags stay 0, but it wakes a peer that sleeps. "Section n" is that of protocol.md, "calls n" that of
protocol-calls.md.

The methods of `calls`: `echo` replies with the request; `fail` fails with the code 7 and the request as its text;
`words` streams the words of the request, and `push` pushes them; `upload` replies with the chunks, joined by spaces;
`duplex` sends each chunk back. Their numbers are options.
"""

import argparse
import contextlib
import ctypes
import fcntl
import os
import random
import select
import socket
import stat
import struct
import subprocess
import tempfile
import time
from collections import deque, namedtuple

# Python has no atomic operations; these have the orders that section 4 and section 5 ask for.
ATOMICS = r"""
#include <stdint.h>
uint64_t load(uint64_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
void store(uint64_t *word, uint64_t value) { __atomic_store_n(word, value, __ATOMIC_RELEASE); }
void clear_flag(uint32_t *flag) { __atomic_store_n(flag, 0, __ATOMIC_RELAXED); }
void fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
uint32_t take_flag(uint32_t *flag) {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return __atomic_load_n(flag, __ATOMIC_RELAXED) ? __atomic_exchange_n(flag, 0, __ATOMIC_SEQ_CST) : 0;
}
"""


def compile_atomics():
    """Compiles the lines above with cc, and loads them."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "atomics.so")
        command = ["cc", "-O2", "-shared", "-fPIC", "-x", "c", "-", "-o", path]
        subprocess.run(command, input=ATOMICS.encode(), check=True, timeout=60)
        library = ctypes.CDLL(path)
    for function in (library.load, library.store, library.clear_flag, library.take_flag):
        function.argtypes = [ctypes.c_void_p, ctypes.c_uint64][: 2 if function is library.store else 1]
    library.load.restype, library.take_flag.restype = ctypes.c_uint64, ctypes.c_uint32
    return library


atomics = compile_atomics()
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
SYS_FUTEX = {"x86_64": 202, "aarch64": 98}[os.uname().machine]
PATIENCE = 30.0  # seconds: the deadline of each wait


class Violation(Exception):
    """The peer broke the protocol."""


class Ended(Exception):
    """The connection is over, or the server refused it."""


def require(condition, what):
    """Validates what the peer wrote."""
    if not condition:
        raise Violation(what)


# ---- Section 2: handshake

Sizes = namedtuple("Sizes", "slots oob arena longest")
SEAL_SEAL, SEAL_SHRINK, SEAL_GROW, SEAL_WRITE, SEAL_FUTURE_WRITE = 1, 2, 4, 8, 16
F_ADD_SEALS, F_GET_SEALS = 1033, 1034
TMPFS_MAGIC = 0x01021994
SO_PASSRIGHTS = 83
ACKNOWLEDGE = b"\x06"


def up(size):
    """Rounds up to 4096."""
    return (size + 4095) & ~4095


def memory_size(sizes):
    """The end of the memory (section 3)."""
    return up(8192 + 256 * sizes.slots) + 2 * up(sizes.arena)


def receive_answer(connected):
    """Reads the 128 bytes of an Accept or Reject, in whatever parts they come, and the descriptors beside them."""
    answer, descriptors = b"", []
    while len(answer) < 128:
        part, ancillary, _, _ = connected.recvmsg(128 - len(answer), 1024, socket.MSG_CMSG_CLOEXEC)
        if not part:
            raise Ended("the server closed during the handshake")
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors += struct.unpack(f"{len(data) // 4}i", data[: len(data) // 4 * 4])
        answer += part
    return answer, descriptors


def validate_answer(answer, wanted):
    """Validates an Accept; gives the sizes and the first ticket. Raises the text of a Reject."""
    magic, kind, version, features = struct.unpack_from("<8sHHI", answer)
    require(magic == b"narrows!" and kind in (1, 2), "the answer is not of this protocol")
    if kind == 2:
        code, length, zero = struct.unpack_from("<HHI", answer, 16)
        require(length <= 64 and zero == 0 and not any(answer[24 + length :]), "a Reject with stray bytes")
        raise Ended(f"rejected: code {code}: {answer[24:24 + length].decode()} (server speaks {version})")
    slots, oob, arena, longest, first_ticket, size = struct.unpack_from("<IIQQQQ", answer, 16)
    sizes = Sizes(slots, oob, arena, longest)
    require(version == 2 and features == 0, "a version or a feature that was not offered")
    require(all(got <= want for got, want in zip(sizes, wanted)), "more than was wanted")
    for size_got, least in ((slots, 1), (oob, 1), (arena, 64)):
        require(size_got >= least and size_got.bit_count() == 1, "not a legal power of two")
    require(longest >= 1 and first_ticket <= 2**63 - 2, "no legal longest message or first ticket")
    require(size == memory_size(sizes), "a wrong size of the memory")
    require(not any(answer[56:]), "an Accept with stray bytes")
    return sizes, first_ticket


def map_memory(descriptor, size):
    """Verifies, maps and seals the memory, in the order of section 2.6; gives its address."""
    seals = fcntl.fcntl(descriptor, F_GET_SEALS)
    require(seals & SEAL_SHRINK and seals & SEAL_GROW, "a seal is missing")
    require(not seals & (SEAL_WRITE | SEAL_FUTURE_WRITE | SEAL_SEAL), "a seal too many")
    status = os.fstat(descriptor)
    file_system = (ctypes.c_long * 32)()  # struct statfs begins with the type
    require(libc.fstatfs(descriptor, file_system) == 0 and file_system[0] == TMPFS_MAGIC, "not on tmpfs")
    require(stat.S_ISREG(status.st_mode) and status.st_size == size, "not the memory that the Accept announced")
    address = libc.mmap(None, size, 3, 1, descriptor, 0)  # PROT_READ | PROT_WRITE, MAP_SHARED
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "mmap")
    fcntl.fcntl(descriptor, F_ADD_SEALS, SEAL_FUTURE_WRITE | SEAL_SEAL)
    all_four = SEAL_SEAL | SEAL_SHRINK | SEAL_GROW | SEAL_FUTURE_WRITE
    require(fcntl.fcntl(descriptor, F_GET_SEALS) & all_four == all_four, "a seal did not hold")
    return address


def connect(path, wanted):
    """The whole handshake; gives a Connection."""
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connected.settimeout(5)
    connected.connect(path)
    connected.sendall(struct.pack("<8sHHIIIQQQI12x", b"narrows?", 2, 2, 0, *wanted, 0, 0))
    answer, descriptors = receive_answer(connected)
    sizes, first_ticket = validate_answer(answer, wanted)
    require(len(descriptors) == 1, "not exactly one descriptor")
    with contextlib.suppress(OSError):  # before Linux 6.16
        connected.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
    address = map_memory(descriptors[0], memory_size(sizes))
    connected.sendall(ACKNOWLEDGE)
    os.close(descriptors[0])
    return Connection(connected, address, sizes, first_ticket)


# ---- Sections 3 to 6: memory, messages, waking, the end

HEAD, CONSUMER_FLAG, PRODUCER_FLAG, PRODUCER_CLOSED, CONSUMER_CLOSED = 0x000, 0x080, 0x100, 0x180, 0x200
DOORBELL, OOB_WORDS = 0x480, 0x800
STAMP, CONTROL, TAG, PAYLOAD = 0, 8, 16, 24
SLOT, INLINE_MOST = 128, 104
INLINE, WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4, 5
ABORT = 1 << 5
TO_SERVER, TO_CLIENT = 0, 1


class Connection:
    """A connection after the handshake, from the client's side: producer of direction 0, consumer of direction 1."""

    def __init__(self, connected, address, sizes, first_ticket):
        self.socket, self.address, self.sizes = connected, address, sizes
        self.poll = select.poll()
        self.poll.register(connected, select.POLLRDHUP)
        self.words = [address, address + 4096]
        self.slots = [address + 8192, address + 8192 + SLOT * sizes.slots]
        arenas = address + up(8192 + 256 * sizes.slots)
        self.arenas = [arenas, arenas + up(sizes.arena)]
        # As the producer: the next ticket, the last head seen, and the spans of the arena that are not released.
        self.next_sent = self.head_seen = first_ticket
        self.spans, self.arena_next = deque(), 0
        self.abandoned = False
        self.doorbell = 0
        # As the consumer: the next ticket, and the message of which only fragments came.
        self.next_received = first_ticket
        self.partial = self.partial_total = self.partial_tag = None

    # Waiting and waking

    def wait(self, look, closed_flag):
        """Polls until `look` gives something. How the direction has ended is read before the look, and counts after it."""
        give_up = time.monotonic() + PATIENCE
        for turn in range(1 << 62):
            ended = self.how_it_ended(closed_flag)
            found = look()
            if found is not None:
                return found
            if ended:
                raise Ended(ended)
            if time.monotonic() > give_up:
                raise TimeoutError("nothing came")
            time.sleep(0 if turn < 100 else 0.0001)

    def how_it_ended(self, closed_flag):
        """None, or how the direction has ended. After a hang-up the flag is read again: a peer that closed did not die."""
        if not atomics.load(closed_flag) and not self.poll.poll(0):
            return None
        return "the peer closed" if atomics.load(closed_flag) else "the peer hung up"

    def wake_consumer(self):
        """After something was published for the consumer of direction 0."""
        flag = self.words[TO_SERVER] + CONSUMER_FLAG
        if atomics.take_flag(flag):
            self.futex_wake(flag)

    def wake_producer(self):
        """After something was published for the producer of direction 1. It may sleep as the consumer of direction 0."""
        flag = self.words[TO_CLIENT] + PRODUCER_FLAG
        taken = atomics.take_flag(flag)
        if taken == 2:
            flag = self.words[TO_SERVER] + CONSUMER_FLAG
            atomics.clear_flag(flag)
        if taken:
            self.futex_wake(flag)

    @staticmethod
    def futex_wake(flag):
        """FUTEX_WAKE of one waiter, in the shared form."""
        if libc.syscall(SYS_FUTEX, ctypes.c_void_p(flag), 1, 1, None, None, 0) < 0:
            raise OSError(ctypes.get_errno(), "futex")

    # Sending

    def wait_for_release(self, ticket):
        """Waits until this ticket, and so each before it, is released. Fails at once if the peer closed."""
        closed_flag = self.words[TO_SERVER] + CONSUMER_CLOSED
        if ended := self.how_it_ended(closed_flag):
            raise Ended(ended)

        def look():
            head = atomics.load(self.words[TO_SERVER] + HEAD)
            require(self.head_seen <= head <= self.next_sent, "a head that cannot be")
            self.head_seen = head
            return head > ticket or None

        self.wait(look, closed_flag)

    def span(self, length):
        """Finds room in the arena for the payload of the next ticket: the arena is used round and round."""
        start = self.arena_next if self.arena_next + length <= self.sizes.arena else 0
        end = (start + length + 63) & ~63
        while True:
            used = [ticket for ticket, first, behind in self.spans if first < end and start < behind]
            if not used:
                break
            self.wait_for_release(used[-1])
            while self.spans and self.spans[0][0] < self.head_seen:
                self.spans.popleft()
        self.spans.append((self.next_sent, start, end))
        self.arena_next = end
        return start

    def put(self, kind, tag, payload, flags=0, total=None):
        """Fills the slot of the next ticket, and sends it."""
        ticket = self.next_sent
        require(ticket <= 2**63 - 2, "no ticket is left")
        slot = self.slots[TO_SERVER] + SLOT * (ticket % self.sizes.slots)
        self.wait_for_release(ticket - self.sizes.slots)
        offset = 0 if kind == INLINE else self.span(len(payload))
        atomics.store(slot + STAMP, 2 * ticket + 1)
        atomics.fence()
        ctypes.memmove(slot + PAYLOAD if kind == INLINE else self.arenas[TO_SERVER] + offset, payload, len(payload))
        if kind == FIRST:
            atomics.store(slot + PAYLOAD, total)
        atomics.store(slot + CONTROL, len(payload) << 32 | offset // 64 << 6 | flags | kind)
        atomics.store(slot + TAG, tag)
        atomics.store(slot + STAMP, 2 * ticket + 2)
        self.next_sent += 1
        self.wake_consumer()

    def send(self, tag, message, abandon=False):
        """Sends a message: in the slot, in the arena, or in fragments. `abandon` leaves out the last fragment."""
        most = max(64, self.sizes.arena // 4)
        flags, self.abandoned = ABORT if self.abandoned else 0, False
        if len(message) <= max(INLINE_MOST, most):
            self.put(INLINE if len(message) <= INLINE_MOST else WHOLE, tag, message, flags)
            return
        for start in range(0, len(message), most):
            last = start + most >= len(message)
            if last and abandon:
                self.abandoned = True
                return
            kind = FIRST if start == 0 else LAST if last else MIDDLE
            self.put(kind, tag, message[start : start + most], flags if kind == FIRST else 0, len(message))

    def send_oob(self, index, value):
        """Stores an out-of-band word, then the doorbell, and wakes the consumer."""
        atomics.store(self.words[TO_SERVER] + OOB_WORDS + 8 * index, value)
        self.doorbell += 1
        atomics.store(self.words[TO_SERVER] + DOORBELL, self.doorbell)
        self.wake_consumer()

    # Receiving

    def receive(self):
        """The next message, as (tag, bytes, was it fragmented?). The tag of a message in fragments is that of First."""
        while True:
            kind, tag, payload, total = self.wait(self.take_slot, self.words[TO_CLIENT] + PRODUCER_CLOSED)
            if kind in (INLINE, WHOLE):
                self.partial = None
                return tag, payload, False
            if kind == FIRST:
                self.partial, self.partial_total, self.partial_tag = bytearray(), total, tag
            self.partial += payload
            if kind == LAST:
                message, self.partial = bytes(self.partial), None
                return self.partial_tag, message, True

    def is_ready(self):
        """Whether the next slot is ready."""
        slot = self.slots[TO_CLIENT] + SLOT * (self.next_received % self.sizes.slots)
        return atomics.load(slot + STAMP) == 2 * self.next_received + 2

    def take_slot(self):
        """Takes one slot and releases it, or gives None if it is not ready."""
        ticket, slots = self.next_received, self.sizes.slots
        slot = self.slots[TO_CLIENT] + SLOT * (ticket % slots)
        stamp = atomics.load(slot + STAMP)
        if stamp != 2 * ticket + 2:
            require(stamp in (0, 2 * (ticket - slots) + 2, 2 * ticket + 1), "a stamp that cannot be")
            return None
        control, tag = atomics.load(slot + CONTROL), atomics.load(slot + TAG)
        kind, length, offset, total = self.validate(control, slot)
        source = slot + PAYLOAD if kind == INLINE else self.arenas[TO_CLIENT] + offset
        payload = ctypes.string_at(source, length)
        atomics.fence()
        require(atomics.load(slot + STAMP) == stamp, "the message was changed meanwhile")
        self.next_received += 1
        atomics.store(self.words[TO_CLIENT] + HEAD, self.next_received)
        self.wake_producer()
        return kind, tag, payload, total

    def validate(self, control, slot):
        """Checks all that section 3.2 says of a slot; gives (kind, length, offset, total length)."""
        kind, length, offset = control & 31, control >> 32, (control >> 6 & 0x3FFFFFF) * 64
        expects_fragment, begins = self.partial is not None, kind in (INLINE, WHOLE, FIRST)
        require(INLINE <= kind <= LAST, "an unknown kind of slot")
        require(bool(control & ABORT) == (begins and expects_fragment), "abort is wrong")
        require(begins or expects_fragment, "a fragment of nothing")
        if kind == INLINE:
            require(length <= INLINE_MOST and offset == 0, "an Inline that does not fit")
        else:
            require(1 <= length and offset + length <= self.sizes.arena, "a span outside of the arena")
        total = length
        if not begins:
            total, so_far = self.partial_total, len(self.partial) + length
            require(so_far == total if kind == LAST else so_far < total, "fragments of a wrong length")
        elif kind == FIRST:
            total = atomics.load(slot + PAYLOAD)
            require(length < total, "a First that is whole")
        require(total <= self.sizes.longest, "a message that is too long")
        return kind, length, offset, total

    def close(self):
        """Stores both closed flags, wakes the peer in both directions, and closes the socket."""
        atomics.store(self.words[TO_SERVER] + PRODUCER_CLOSED, 1)
        atomics.store(self.words[TO_CLIENT] + CONSUMER_CLOSED, 1)
        self.wake_consumer()
        self.wake_producer()
        self.socket.close()


# ---- The RPC layer

(HELLO, ACCEPT, REFUSE, CALL, CHUNK, END, CREDIT, REPLY, ERROR, PUSH, CONTINUATION, GOODBYE) = range(1, 13)
MORE, STREAM, UPLOAD, NOTIFY, DEADLINE = 1, 2, 4, 8, 16
UNKNOWN_METHOD, WRONG_KIND, FAILED, SHUTTING_DOWN = 1, 2, 3, 7
COUNTED = {CALL, CHUNK, END, REPLY, PUSH, CONTINUATION}
ITEM_COST = 64
LEAST_WINDOW = 1024
SETTINGS = struct.Struct("<8sHHII12s")


class Window:
    """One window: what may be sent, what may be received, and what was consumed and not given back (calls 5)."""

    def __init__(self, size):
        self.size = self.may_send = self.may_receive = size
        self.owed = 0

    def longest(self, longest_message):
        """The longest item: credit that the receiver holds back is never needed for it."""
        return min(self.size - self.size // 4 - ITEM_COST, longest_message)

    def consume(self, item):
        """Notes that an item was consumed. Gives the credit that is due, or 0: it is held back as long as is allowed."""
        self.owed += len(item) + ITEM_COST
        if self.owed < max(self.size // 4, 1):
            return 0
        credit, self.owed = self.owed, 0
        self.may_receive += credit
        return credit


class Call:
    """A call under way: what came for it, and what is left of its windows."""

    def __init__(self, flags, window):
        self.flags = flags
        self.chunks = deque()
        self.final = None  # ("reply", bytes), ("end",), or ("error", status, code, text)
        self.sent = self.received = 0  # counted frames of both directions
        self.item = None  # kind and bytes of an item that is not whole
        self.window = Window(window)


class Client:
    """The client's side of the RPC layer."""

    def __init__(self, connection, options):
        self.connection = connection
        sizes = connection.sizes
        require(sizes.longest >= 8 + SETTINGS.size, "calls need longer messages")
        self.max_fragment = min(max(INLINE_MOST, min(64 << 10, sizes.arena // 4)), sizes.longest) - 8
        self.slots = sizes.oob
        self.numbers = list(range(self.slots))  # the last number of each call slot
        self.under_way = {}
        self.goodbye = False
        self.exchange_prefaces(options.stream_window, options.push_window)

    def exchange_prefaces(self, stream_window, push_window):
        """Hello and Accept, or Refuse (calls 2)."""
        settings = SETTINGS.pack(b"narrows#", 1, 0, stream_window, push_window, bytes(12))
        self.send_frame(HELLO, 0, body=settings)
        tag, kind, flags, sequence, word, body = self.receive_frame()
        require(kind in (ACCEPT, REFUSE) and (tag, flags, sequence) == (0, 0, 0), "a frame before the Accept")
        if kind == REFUSE:
            require(1 <= word <= 65535 and len(body) <= 64, "a Refuse without its code, or too long")
            raise Ended(f"refused: code {word}: {body.decode(errors='replace')}")
        require(len(body) == SETTINGS.size and word == 0, "no settings")
        magic, version, zero, streams, pushes, zeros = SETTINGS.unpack(body)
        require(magic == b"narrows#" and version >= 1, "no preface")
        if version == 1:  # of a later version, which uses version 1 with this client, nothing else is validated
            require(zero == 0 and not any(zeros) and min(streams, pushes) >= LEAST_WINDOW, "settings that cannot be")
        self.stream_window = min(streams, stream_window)
        self.pushes = Call(0, min(pushes, push_window))  # received like the chunks of a call with the number 0

    # Frames and items (calls 1)

    def send_frame(self, kind, tag, flags=0, word=0, body=b"", sequence=0):
        """Sends one frame. If the server has closed, what it sent before is still to be read, and reports the end."""
        with contextlib.suppress(Ended):
            self.connection.send(tag, struct.pack("<BBHI", kind, flags, sequence, word) + body)

    def send_item(self, call, kind, number, flags=0, word=0, item=b""):
        """Sends an item as a first frame and as many Continuation frames as it needs."""
        start = 0
        while start == 0 or start < len(item):
            more = MORE if start + self.max_fragment < len(item) else 0
            body, sequence = item[start : start + self.max_fragment], call.sent & 0xFFFF
            self.send_frame(kind, number, flags | more, word, body, sequence)
            call.sent += 1
            kind, flags, word, start = CONTINUATION, 0, 0, start + self.max_fragment

    def receive_frame(self):
        """The next frame, as (tag, kind, flags, sequence, word, body)."""
        tag, frame, fragmented = self.connection.receive()
        require(not fragmented and len(frame) >= 8, "not a frame")
        return (tag, *struct.unpack_from("<BBHI", frame), frame[8:])

    def step(self):
        """Receives one frame, and does what it says."""
        tag, kind, flags, sequence, word, body = self.receive_frame()
        require(CHUNK <= kind <= GOODBYE, "a kind that no server sends now")
        require(flags & ~(MORE if kind in COUNTED - {END} else 0) == 0, "a flag that the kind does not have")
        require((word != 0) == (kind in (CREDIT, ERROR)), "a word that the kind does not have")
        require(tag == 0 or kind not in (PUSH, GOODBYE), "a number where none belongs")
        if kind == GOODBYE:
            require(sequence == 0 and not body, "a Goodbye with more than that")
            self.goodbye = True
            for number in list(self.under_way):  # it was never begun
                self.finish(number, ("error", SHUTTING_DOWN, 0, ""))
            return
        call = self.pushes if tag == 0 and kind in (PUSH, CONTINUATION) else self.under_way.get(tag)
        require(call is not None, "a frame for a call that is not under way")
        if kind in COUNTED:
            require(sequence == call.received & 0xFFFF, "a frame out of sequence")
            call.received += 1
        else:
            require(sequence == 0, "a sequence where none is counted")
        if kind == CREDIT:
            require(call.flags & UPLOAD and not body, "credit for a call without UPLOAD")
            call.window.may_send += word
            require(call.window.may_send <= call.window.size, "credit beyond the window")
        elif kind == ERROR:
            require(4 <= len(body) <= 1028 and word <= 9, "an Error without its code, too long, or of no known status")
            code, text = int.from_bytes(body[:4], "little"), body[4:].decode(errors="replace")
            self.finish(tag, ("error", word, code, text))
        elif kind == END:
            require(call.flags & STREAM and call.item is None and not body, "an End that ends nothing")
            self.finish(tag, ("end",))
        else:
            self.receive_item(call, tag, kind, flags, body)

    def receive_item(self, call, tag, kind, flags, body):
        """Adds a frame to the item that it begins or continues."""
        if kind == CONTINUATION:
            require(call.item is not None and body, "a Continuation of nothing")
            (kind, item), cost = call.item, len(body)
        else:
            require(call.item is None, "items of a call may not be interleaved")
            require(body or not flags & MORE, "an empty body in an item of several frames")
            require(kind == PUSH or (kind == CHUNK) == bool(call.flags & STREAM), "not what the call answers with")
            item, cost = bytearray(), len(body) + ITEM_COST
        if kind != REPLY:
            call.window.may_receive -= cost
            require(call.window.may_receive >= 0, "more than is left of the window")
        item += body
        require(len(item) <= self.connection.sizes.longest, "an item that is too long")
        call.item = (kind, item) if flags & MORE else None
        if call.item is None and kind == REPLY:
            self.finish(tag, ("reply", bytes(item)))
        elif call.item is None:
            call.chunks.append(bytes(item))

    def finish(self, number, final):
        """The final frame of a call came: its slot is free."""
        self.under_way.pop(number).final = final

    # Calls (calls 3 to 7)

    def begin(self, method, request=b"", flags=0, deadline=None):
        """Sends a request under the least number that is free; gives the number and the call."""
        while len(self.under_way) == self.slots:
            self.step()
        taken = {number % self.slots for number in self.under_way}
        slot = next(slot for slot in range(self.slots) if slot not in taken)
        self.numbers[slot] += self.slots
        number, call = self.numbers[slot], Call(flags, self.stream_window)
        if self.goodbye:
            call.final = ("error", SHUTTING_DOWN, 0, "")
            return number, call
        self.under_way[number] = call
        if deadline is not None:
            flags, request = flags | DEADLINE, struct.pack("<Q", deadline) + request
        self.send_item(call, CALL, number, flags, method, request)
        return number, call

    def wait_final(self, call):
        """The final frame of a call."""
        while call.final is None:
            self.step()
        return call.final

    def call(self, method, request=b"", **options):
        """A call and its final frame."""
        return self.wait_final(self.begin(method, request, **options)[1])

    def next_chunk(self, number, call):
        """The next chunk of a streamed reply, or None behind the last one. Pushes are chunks of `pushes`, number 0."""
        while not call.chunks and call.final is None:
            self.step()
        if not call.chunks:
            return None
        chunk = call.chunks.popleft()
        credit = call.window.consume(chunk)
        if credit and call.final is None:
            self.send_frame(CREDIT, number, word=credit)
        return chunk

    def send_chunk(self, number, call, chunk):
        """Sends a chunk of an upload once the window allows, unless the call is over before."""
        while call.final is None and call.window.may_send < len(chunk) + ITEM_COST:
            self.step()
        if call.final is None:
            call.window.may_send -= len(chunk) + ITEM_COST
            self.send_item(call, CHUNK, number, item=chunk)

    def finish_upload(self, number, call):
        """Ends an upload, unless the call is over; gives the final frame."""
        if call.final is None:
            self.send_item(call, END, number)
        return self.wait_final(call)


# ---- The modes


def check(name, passed):
    """Reports what was tested; ends the program if it failed."""
    print(f"{'ok  ' if passed else 'FAIL'} {name}", flush=True)
    if not passed:
        raise SystemExit(1)


def words_of(source, longest):
    """Words of random letters: the longest ones behind up to 12 empty ones, and all lengths between."""
    lengths = [length for empty in range(13) for length in [0] * empty + [longest]]
    lengths += [1, longest // 2, *range(0, min(longest, 900), 7), longest]
    return [source.randbytes((length + 1) // 2).hex()[:length].encode() for length in lengths]


def messages(connection, options):
    """Exchanges messages with an echo server of streams."""
    source = random.Random(1)

    def echoed(message):
        tag = source.getrandbits(64)
        connection.send(tag, message)
        return connection.receive()[:2] == (tag, message)

    check("messages of 0 to 300 bytes and their tags", all(echoed(source.randbytes(length)) for length in range(301)))
    check(f"a message of {options.long} bytes", echoed(source.randbytes(options.long)))
    connection.send(1, source.randbytes(options.long), abandon=True)
    check("a message behind one that was abandoned", echoed(b"behind it"))
    batch = [(tag, source.randbytes(tag)) for tag in range(min(connection.sizes.slots, INLINE_MOST))]
    for tag, message in batch:
        connection.send(tag, message)
    check("a ring full of messages", all(connection.receive()[:2] == sent for sent in batch))


def calls(connection, options):
    """Calls each method."""
    client, source = Client(connection, options), random.Random(2)
    windows = Window(client.stream_window), client.pushes.window
    chunk, push = (window.longest(connection.sizes.longest) for window in windows)
    print(f"     longest chunk: {chunk}; longest push: {push}")
    check("a call and its reply", client.call(options.echo, b"mind the tide") == ("reply", b"mind the tide"))
    check("a call with a deadline", client.call(options.echo, b"soon", deadline=10**10) == ("reply", b"soon"))
    check("a notification", client.call(options.echo, b"not awaited", flags=NOTIFY)[0] in ("reply", "error"))
    started = [client.begin(options.echo, b"call %d" % turn) for turn in range(3 * client.slots)]
    finals = [client.wait_final(call) for _, call in started]
    check("many calls under way", finals == [("reply", b"call %d" % turn) for turn in range(len(started))])
    check("an unknown method", client.call(4711)[:3] == ("error", UNKNOWN_METHOD, 0))
    check("a method's own error", client.call(options.fail, b"no reason") == ("error", FAILED, 7, "no reason"))
    streams(client, options, words_of(source, chunk))
    uploads(client, options, words_of(source, chunk))
    pushes(client, options, words_of(source, push))
    check("a call behind all that", client.call(options.echo, b"still there") == ("reply", b"still there"))


def streams(client, options, wanted):
    """A streamed reply, and one that is cancelled."""
    number, call = client.begin(options.words, b" ".join(wanted), STREAM)
    chunks = list(iter(lambda: client.next_chunk(number, call), None))
    check("a streamed reply, under credit", chunks == wanted and call.final == ("end",))
    # The deadline passes while the window is full: the server sends nothing until the client cancels.
    request = b"word " * (3 * client.stream_window // ITEM_COST)
    number, call = client.begin(options.words, request, STREAM, deadline=10**6)
    first = client.next_chunk(number, call)
    time.sleep(0.1)
    while client.connection.is_ready():
        client.step()
    check("a deadline that passed ends nothing by itself", first == b"word" and call.final is None)
    client.connection.send_oob(number % client.slots, number)
    # The method may notice the cancel first, and answer with an error of its own, or have ended before.
    check("a cancelled stream", client.wait_final(call)[0] in ("error", "end"))


def uploads(client, options, wanted):
    """Uploads: one whose chunks come back in the reply, one whose chunks come back as a stream, one that is refused."""
    number, call = client.begin(options.upload, flags=UPLOAD)
    for chunk in wanted:
        client.send_chunk(number, call, chunk)
    check("an upload, under credit", client.finish_upload(number, call) == ("reply", b" ".join(wanted)))
    number, call = client.begin(options.duplex, flags=UPLOAD | STREAM)
    returned = []
    for chunk in wanted:
        client.send_chunk(number, call, chunk)
        returned.append(client.next_chunk(number, call))
    check("streams both ways", returned == wanted and client.finish_upload(number, call) == ("end",))
    number, call = client.begin(options.echo, flags=UPLOAD)
    check("an upload to a method that takes none", client.wait_final(call)[:2] == ("error", WRONG_KIND))
    client.send_frame(CHUNK, number, sequence=4711, body=b"late")
    check("a late frame is dropped", client.call(options.echo, b"behind it") == ("reply", b"behind it"))


def pushes(client, options, wanted):
    """Pushes, which a method makes before it replies."""
    _, call = client.begin(options.push, b" ".join(wanted))
    pushed = [client.next_chunk(0, client.pushes) for _ in wanted]
    check("pushes, under credit", pushed == wanted and client.wait_final(call)[0] == "reply")


def echo_calls(connection, options):
    """Calls an echo method with requests of many lengths."""
    client, source = Client(connection, options), random.Random(3)
    fragment = client.max_fragment
    lengths = [*range(301), fragment - 1, fragment, fragment + 1, 2 * fragment, options.long]
    requests = [source.randbytes(length) for length in lengths]
    echoed = all(client.call(options.echo, request) == ("reply", request) for request in requests)
    check(f"requests of 0 to {options.long} bytes", echoed)
    check("an unknown method", client.call(4711)[:2] == ("error", UNKNOWN_METHOD))


def goodbye(connection, options):
    """Calls until the server says Goodbye, and reads on until it has closed."""
    client = Client(connection, options)
    check("connected", client.call(options.echo) == ("reply", b""))
    while (final := client.call(options.echo, b"again")) == ("reply", b"again"):
        pass
    check("a call that the server did not begin", final[:2] == ("error", SHUTTING_DOWN))
    with contextlib.suppress(Ended):
        while True:
            client.step()
    check("a Goodbye before the end", client.goodbye)


MODES = {"messages": messages, "echo-calls": echo_calls, "calls": calls, "goodbye": goodbye}
METHODS = {"echo": 1, "fail": 2, "words": 3, "upload": 4, "duplex": 5, "push": 6}


def main():
    """Reads the command line, connects, runs the mode, and closes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("path")

    def number(name, default, text):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text}; default %(default)s")

    for name, size in Sizes(slots=64, oob=16, arena=1 << 20, longest=16 << 20)._asdict().items():
        number(name, size, "in the Hello")
    for name in ("stream-window", "push-window"):
        number(name, LEAST_WINDOW, "in the preface of calls")
    for name, method in METHODS.items():
        parser.add_argument(f"--{name}-method", type=int, dest=name, default=method, help="default %(default)s")
    number("long", 10 << 20, "bytes of the long message or request")
    options = parser.parse_args()
    connection = connect(options.path, Sizes(options.slots, options.oob, options.arena, options.longest))
    print(f"     connected: {connection.sizes}")
    with contextlib.closing(connection):
        MODES[options.mode](connection, options)
    check("closed", True)


if __name__ == "__main__":
    main()
