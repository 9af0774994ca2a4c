// boost::interprocess::message_queue behind a C interface, for boost.rs. No exception leaves.

#include <boost/interprocess/ipc/message_queue.hpp>
#include <boost/version.hpp>

using boost::interprocess::message_queue;

extern "C" {

unsigned boost_queue_version() { return BOOST_VERSION; }

// A new queue, or one that the other side has made; null if that failed.
message_queue *boost_queue_open(const char *name, size_t slots, size_t size, bool create) {
    try {
        if (create) {
            return new message_queue(boost::interprocess::create_only, name, slots, size);
        }
        return new message_queue(boost::interprocess::open_only, name);
    } catch (...) {
        return nullptr;
    }
}

void boost_queue_close(message_queue *queue) { delete queue; }

void boost_queue_remove(const char *name) { message_queue::remove(name); }

// 1 if sent, 0 if it is full (spin alone), -1 if that failed.
int boost_queue_send(message_queue *queue, const unsigned char *bytes, size_t size, bool spin) {
    try {
        if (spin) {
            return queue->try_send(bytes, size, 0) ? 1 : 0;
        }
        queue->send(bytes, size, 0);
        return 1;
    } catch (...) {
        return -1;
    }
}

// The length of a message, 0 if there is none (spin alone), -1 if that failed.
long boost_queue_receive(message_queue *queue, unsigned char *bytes, size_t room, bool spin) {
    try {
        message_queue::size_type size = 0;
        unsigned priority = 0;
        if (!spin) {
            queue->receive(bytes, room, size, priority);
        } else if (!queue->try_receive(bytes, room, size, priority)) {
            return 0;
        }
        return static_cast<long>(size);
    } catch (...) {
        return -1;
    }
}
}
