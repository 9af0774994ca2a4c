#!/usr/bin/env python3
"""A second implementation of the protocol, written from docs/protocol.md and docs/protocol-calls.md alone.

    client.py messages PATH     an echo server of streams:  narrows serve-echo PATH
    client.py calls PATH        a server of calls:          cargo run --example calls -- serve PATH
    client.py echo-calls PATH   an echo server of calls:    narrows serve-echo --calls PATH

It proves that the pages say enough, not that it is fast: it polls, so it never sleeps on a flag, but it wakes a
peer that does. "Section n" is that of protocol.md, "calls n" that of protocol-calls.md.
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
        subprocess.run(command, input=ATOMICS.encode(), check=True)
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
PATIENCE = 20.0  # seconds that the client waits for anything


class Violation(Exception):
    """The peer broke the protocol."""


class Ended(Exception):
    """The connection is over."""


class Rejected(Exception):
    """The server refused the connection."""


def require(condition, what):
    """Validates what the peer wrote."""
    if not condition:
        raise Violation(what)


# ---- Section 2: handshake

Sizes = namedtuple("Sizes", "slots urgent arena longest")
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


def read_answer(connected):
    """Reads the 128 bytes of a Welcome or Reject, in whatever parts they come, and the descriptors beside them."""
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


def read_welcome(answer, wanted):
    """Validates a Welcome; gives the sizes and the first ticket. Raises what a Reject says."""
    magic, kind, version, features = struct.unpack_from("<8sHHI", answer)
    require(magic == b"narrows!" and kind in (1, 2), "the answer is not of this protocol")
    if kind == 2:
        code, length, zero = struct.unpack_from("<HHI", answer, 16)
        require(length <= 64 and zero == 0 and not any(answer[24 + length :]), "a Reject with stray bytes")
        raise Rejected(f"code {code}: {answer[24:24 + length].decode()} (server speaks {version})")
    slots, urgent, arena, longest, first_ticket, size = struct.unpack_from("<IIQQQQ", answer, 16)
    sizes = Sizes(slots, urgent, arena, longest)
    require(version == 2 and features == 0, "a version or a feature that was not offered")
    require(all(got <= want for got, want in zip(sizes, wanted)), "more than was wanted")
    for size_got, least in ((slots, 1), (urgent, 1), (arena, 64)):
        require(size_got >= least and size_got.bit_count() == 1, "not a legal power of two")
    require(longest >= 1, "no legal longest message")
    require(first_ticket <= 2**63 - 2 and size == memory_size(sizes), "illegal first ticket or size of the memory")
    require(not any(answer[56:]), "a Welcome with stray bytes")
    return sizes, first_ticket


def map_memory(descriptor, size):
    """Verifies, maps and seals the memory, in the order of section 2.6; gives its address."""
    seals = fcntl.fcntl(descriptor, F_GET_SEALS)
    require(seals & SEAL_SHRINK and seals & SEAL_GROW, "a seal is missing")
    require(not seals & (SEAL_WRITE | SEAL_FUTURE_WRITE | SEAL_SEAL), "a seal too many")
    status = os.fstat(descriptor)
    file_system = (ctypes.c_long * 32)()  # struct statfs begins with the type
    require(libc.fstatfs(descriptor, file_system) == 0 and file_system[0] == TMPFS_MAGIC, "not on tmpfs")
    require(stat.S_ISREG(status.st_mode) and status.st_size == size, "not the memory that the Welcome announced")
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
    answer, descriptors = read_answer(connected)
    sizes, first_ticket = read_welcome(answer, wanted)
    require(len(descriptors) == 1, "not exactly one descriptor")
    with contextlib.suppress(OSError):  # before Linux 6.16
        connected.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
    address = map_memory(descriptors[0], memory_size(sizes))
    connected.sendall(ACKNOWLEDGE)
    os.close(descriptors[0])
    return Connection(connected, address, sizes, first_ticket)


# ---- Sections 3 to 6: memory, messages, waking, the end

HEAD, CONSUMER_FLAG, PRODUCER_FLAG, PRODUCER_CLOSED, CONSUMER_CLOSED = 0x000, 0x080, 0x100, 0x180, 0x200
URGENT_COUNT, URGENT_WORDS = 0x480, 0x800
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
        self.urgent_count = 0
        # As the consumer: the next ticket, and the message of which only fragments came.
        self.next_received = first_ticket
        self.partial = self.partial_total = self.partial_tag = None

    # Waiting and waking

    def wait(self, look, mark):
        """Polls until `look` gives something. How the direction has ended is read before the look, and counts after it."""
        give_up = time.monotonic() + PATIENCE
        for turn in range(1 << 62):
            ended = self.how_it_ended(mark)
            found = look()
            if found is not None:
                return found
            if ended:
                raise Ended(ended)
            if time.monotonic() > give_up:
                raise TimeoutError("nothing came")
            time.sleep(0 if turn < 100 else 0.0001)

    def how_it_ended(self, mark):
        """None, or how the direction with this mark has ended. A hang-up without a mark gets a moment's grace."""
        if not atomics.load(mark) and not self.poll.poll(0):
            return None
        if not atomics.load(mark):
            time.sleep(0.05)
        return "the peer closed" if atomics.load(mark) else "the peer died"

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
        mark = self.words[TO_SERVER] + CONSUMER_CLOSED
        if ended := self.how_it_ended(mark):
            raise Ended(ended)

        def look():
            head = atomics.load(self.words[TO_SERVER] + HEAD)
            require(self.head_seen <= head <= self.next_sent, "a head that cannot be")
            self.head_seen = head
            return head > ticket or None

        self.wait(look, mark)

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

    def send_urgent(self, index, value):
        """Stores an urgent word, then the count."""
        atomics.store(self.words[TO_SERVER] + URGENT_WORDS + 8 * index, value)
        self.urgent_count += 1
        atomics.store(self.words[TO_SERVER] + URGENT_COUNT, self.urgent_count)
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
        """Marks the end in both directions, wakes the peer in both, and closes the socket."""
        atomics.store(self.words[TO_SERVER] + PRODUCER_CLOSED, 1)
        atomics.store(self.words[TO_CLIENT] + CONSUMER_CLOSED, 1)
        self.wake_consumer()
        self.wake_producer()
        self.socket.close()


# ---- The call layer

(HELLO, WELCOME, REFUSE, CALL, CHUNK, END, CREDIT, REPLY, ERROR, PUSH, REST, GOODBYE) = range(1, 13)
MORE, STREAM, UPLOAD, NOTIFY, DEADLINE = 1, 2, 4, 8, 16
UNKNOWN_METHOD, WRONG_KIND, FAILED, SHUTTING_DOWN, CANCELLED = 1, 2, 3, 7, 8
COUNTED = {CALL, CHUNK, END, REPLY, PUSH, REST}
MAY_HAVE_MORE = {CHUNK, REPLY, PUSH, REST}  # of what a server sends
ITEM_COST = 64
SETTINGS = struct.Struct("<8sHHII12s")


class Call:
    """A call under way: what came for it, and what is left of its two windows."""

    def __init__(self, flags, window):
        self.flags = flags
        self.chunks = deque()
        self.final = None  # ("reply", bytes), ("end",), or ("error", status, code, text)
        self.sent = self.received = 0  # counted frames of both directions
        self.item = None  # kind and bytes of an item that is not whole
        self.may_send = self.may_receive = window


class Client:
    """The client's side of the call layer."""

    def __init__(self, connection, stream_window=1024, push_window=4096):
        self.connection = connection
        sizes = connection.sizes
        self.piece = min(max(INLINE_MOST, min(64 << 10, sizes.arena // 4)), sizes.longest) - 8
        self.places = sizes.urgent
        self.numbers = list(range(self.places))  # the last number of each place
        self.under_way = {}
        self.goodbye = False
        self.greet(stream_window, push_window)

    def greet(self, stream_window, push_window):
        """Hello and Welcome, or Refuse (calls 2)."""
        settings = SETTINGS.pack(b"narrows#", 1, 0, stream_window, push_window, bytes(12))
        self.send_frame(HELLO, 0, body=settings)
        tag, kind, flags, sequence, word, body = self.receive_frame()
        require(kind in (WELCOME, REFUSE) and (tag, flags, sequence) == (0, 0, 0), "a frame before the Welcome")
        if kind == REFUSE:
            raise Rejected(f"calls: code {word}: {body.decode()}")
        require(len(body) == SETTINGS.size and word == 0, "no settings")
        magic, version, zero, streams, pushes, zeros = SETTINGS.unpack(body)
        require(magic == b"narrows#" and version == 1, "another version")
        require(zero == 0 and not any(zeros) and min(streams, pushes) >= 1024, "settings that cannot be")
        self.stream_window = min(streams, stream_window)
        self.push_window = min(pushes, push_window)
        # The pushes of a connection are received like the chunks of a call with the number 0.
        self.pushes = Call(0, self.push_window)

    # Frames and items (calls 1)

    def send_frame(self, kind, tag, flags=0, word=0, body=b"", sequence=0):
        """Sends one frame."""
        self.connection.send(tag, struct.pack("<BBHI", kind, flags, sequence, word) + body)

    def send_item(self, call, kind, number, flags=0, word=0, item=b""):
        """Sends an item as a first frame and as many Rest frames as it needs."""
        start = 0
        while start == 0 or start < len(item):
            more = MORE if start + self.piece < len(item) else 0
            body, sequence = item[start : start + self.piece], call.sent & 0xFFFF
            self.send_frame(kind, number, flags | more, word, body, sequence)
            call.sent += 1
            kind, flags, word, start = REST, 0, 0, start + self.piece

    def receive_frame(self):
        """The next frame, as (tag, kind, flags, sequence, word, body)."""
        tag, frame, fragmented = self.connection.receive()
        require(not fragmented and len(frame) >= 8, "not a frame")
        return (tag, *struct.unpack_from("<BBHI", frame), frame[8:])

    def step(self):
        """Receives one frame, and does what it says."""
        tag, kind, flags, sequence, word, body = self.receive_frame()
        require(CHUNK <= kind <= GOODBYE, "a kind that no server sends now")
        require(flags & ~(MORE if kind in MAY_HAVE_MORE else 0) == 0, "a flag that the kind does not have")
        require((word != 0) == (kind in (CREDIT, ERROR)), "a word that the kind does not have")
        require(tag == 0 or kind not in (PUSH, GOODBYE), "a number where none belongs")
        if kind == GOODBYE:
            require(sequence == 0 and not body, "a Goodbye with more than that")
            self.goodbye = True
            for number in list(self.under_way):  # it was never begun
                self.finish(number, ("error", SHUTTING_DOWN, 0, ""))
            return
        call = self.pushes if tag == 0 and kind in (PUSH, REST) else self.under_way.get(tag)
        require(call is not None, "a frame for a call that is not under way")
        if kind in COUNTED:
            require(sequence == call.received & 0xFFFF, "a frame out of sequence")
            call.received += 1
        else:
            require(sequence == 0, "a sequence where none is counted")
        if kind == CREDIT:
            require(call.flags & UPLOAD and not body, "credit that nobody can use")
            call.may_send += word
            require(call.may_send <= self.stream_window, "credit beyond the window")
        elif kind == ERROR:
            require(4 <= len(body) <= 1028, "an Error without its code, or too long")
            self.finish(tag, ("error", word, int.from_bytes(body[:4], "little"), body[4:].decode()))
        elif kind == END:
            require(call.flags & STREAM and call.item is None and not body, "an End that ends nothing")
            self.finish(tag, ("end",))
        else:
            self.receive_item(call, tag, kind, flags, body)

    def receive_item(self, call, tag, kind, flags, body):
        """Adds a frame to the item that it begins or continues."""
        if kind == REST:
            require(call.item is not None and body, "a Rest of nothing")
            (kind, item), cost = call.item, len(body)
        else:
            require(call.item is None, "items of a call may not be interleaved")
            require(body or not flags & MORE, "an empty body in an item of several frames")
            require(kind == PUSH or (kind == CHUNK) == bool(call.flags & STREAM), "not what the call answers with")
            item, cost = bytearray(), len(body) + ITEM_COST
        if kind != REPLY:
            call.may_receive -= cost
            require(call.may_receive >= 0, "more than is left of the window")
        item += body
        require(len(item) <= self.connection.sizes.longest, "an item that is too long")
        call.item = (kind, item) if flags & MORE else None
        if call.item is None and kind == REPLY:
            self.finish(tag, ("reply", bytes(item)))
        elif call.item is None:
            call.chunks.append(bytes(item))

    def finish(self, number, final):
        """The final frame of a call came: its place is free."""
        self.under_way.pop(number).final = final

    def give_back(self, call, number, item):
        """Gives credit for an item that was consumed, at once: the sender may wait for the whole window."""
        call.may_receive += len(item) + ITEM_COST
        with contextlib.suppress(Ended):  # the server may have closed behind frames that are still to be read
            self.send_frame(CREDIT, number, word=len(item) + ITEM_COST)

    # Calls (calls 3 to 6)

    def begin(self, method, request=b"", flags=0, deadline=None):
        """Sends a request under the least number that is free; gives the number and the call."""
        while len(self.under_way) == self.places:
            self.step()
        taken = {number % self.places for number in self.under_way}
        place = next(place for place in range(self.places) if place not in taken)
        self.numbers[place] += self.places
        number, call = self.numbers[place], Call(flags, self.stream_window)
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
        if call.final is None:
            self.give_back(call, number, chunk)
        return chunk

    def upload(self, number, call, chunks):
        """Sends the chunks of an upload as the window allows, then End; stops if the call is over before."""
        for chunk in chunks:
            while call.final is None and call.may_send < len(chunk) + ITEM_COST:
                self.step()
            if call.final is not None:
                return
            call.may_send -= len(chunk) + ITEM_COST
            self.send_item(call, CHUNK, number, item=chunk)
        self.send_item(call, END, number)

    def cancel(self, number):
        """Cancels a call by the urgent word of its place."""
        self.connection.send_urgent(number % self.places, number)


# ---- The modes

MANY = 10 << 20


def check(name, passed):
    """Says what was tested; ends the program if it failed."""
    print(f"{'ok  ' if passed else 'FAIL'} {name}", flush=True)
    if not passed:
        raise SystemExit(1)


def messages(connection, _options):
    """Exchanges messages with an echo server of streams."""
    source = random.Random(1)

    def echoed(message):
        tag = source.getrandbits(64)
        connection.send(tag, message)
        return connection.receive()[:2] == (tag, message)

    check("messages of 0 to 300 bytes and their tags", all(echoed(source.randbytes(length)) for length in range(301)))
    check("a message of 10 MiB", echoed(source.randbytes(MANY)))
    connection.send(1, source.randbytes(MANY), abandon=True)
    check("a message behind one that was abandoned", echoed(b"behind it"))
    batch = [(tag, source.randbytes(tag)) for tag in range(min(connection.sizes.slots, INLINE_MOST))]
    for tag, message in batch:
        connection.send(tag, message)
    check("a ring full of messages", all(connection.receive()[:2] == sent for sent in batch))


def calls(connection, options):
    """Calls the methods of the example `calls`."""
    shout, checksum, words = 1, 2, 3
    client = Client(connection)
    check("a call and its reply", client.call(shout, b"mind the tide") == ("reply", b"MIND THE TIDE"))
    check("a call with a deadline", client.call(shout, b"soon", deadline=10**10) == ("reply", b"SOON"))
    check("a notification", client.call(shout, b"no one waits", flags=NOTIFY)[0] in ("reply", "error"))
    started = [client.begin(shout, b"call %d" % turn) for turn in range(3 * client.places)]
    finals = [client.wait_final(call) for _, call in started]
    check("many calls under way", finals == [("reply", b"CALL %d" % turn) for turn in range(len(started))])
    check("a request of many frames", client.call(checksum, bytes(MANY))[0] == "reply")
    check("an unknown method", client.call(4711)[:3] == ("error", UNKNOWN_METHOD, 0))
    check("a method's own error", client.call(checksum)[:2] == ("error", FAILED))
    wanted = [b"%0*d" % (1 + turn * 7 % 900, turn) for turn in range(500)]
    number, call = client.begin(words, b" ".join(wanted), STREAM)
    chunks = list(iter(lambda: client.next_chunk(number, call), None))
    check("a streamed reply, under credit", chunks == wanted and call.final == ("end",))
    number, call = client.begin(words, b"word " * 1000, STREAM)
    first = client.next_chunk(number, call)
    client.cancel(number)
    final = client.wait_final(call)
    # The method may see first that it was cancelled, and fail with an error of its own.
    check("a cancelled stream", first == b"word" and final[0] == "error" and final[1] in (CANCELLED, FAILED))
    takes_upload = options.upload_method is not None
    number, call = client.begin(options.upload_method if takes_upload else checksum, flags=UPLOAD)
    client.upload(number, call, [b"%0*d" % (1 + turn * 7 % 900, turn) for turn in range(500)])
    final = client.wait_final(call)
    check(f"an upload: {final}", final[0] == "reply" if takes_upload else final[:2] == ("error", WRONG_KIND))
    check("a call behind all that", client.call(shout, b"still there") == ("reply", b"STILL THERE"))
    while client.pushes.chunks:
        print(f"     a push: {client.next_chunk(0, client.pushes)}")


def echo_calls(connection, _options):
    """Calls method 0 of an echo server of calls."""
    client, source = Client(connection), random.Random(2)
    lengths = [*range(301), client.piece - 1, client.piece, client.piece + 1, 2 * client.piece, MANY]
    requests = [source.randbytes(length) for length in lengths]
    check("requests of 0 bytes to 10 MiB", all(client.call(0, request) == ("reply", request) for request in requests))
    check("an unknown method", client.call(1)[:2] == ("error", UNKNOWN_METHOD))


def main():
    """Reads the command line, connects, runs the mode, and closes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["messages", "calls", "echo-calls"])
    parser.add_argument("path")
    for name, size in Sizes(slots=64, urgent=16, arena=1 << 20, longest=16 << 20)._asdict().items():
        parser.add_argument(f"--{name}", type=int, default=size, help="in the Hello; default %(default)s")
    parser.add_argument("--upload-method", type=int, help="a method of the server of calls that takes an upload")
    options = parser.parse_args()
    connection = connect(options.path, Sizes(options.slots, options.urgent, options.arena, options.longest))
    print(f"     connected: {connection.sizes}")
    with contextlib.closing(connection):
        {"messages": messages, "calls": calls, "echo-calls": echo_calls}[options.mode](connection, options)
    check("closed", True)


if __name__ == "__main__":
    main()
