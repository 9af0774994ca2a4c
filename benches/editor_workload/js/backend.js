'use strict';
// The backend: chats with their tools, streams without an end, and questions; as in backend.rs.

const fs = require('node:fs');
const net = require('node:net');
const { plan, stream, now, item, validate, recorder, report, send, receive, fragments, pause, whenInputCloses, ...kind } =
  require('./common.js');

const questions = new Map();
const tools = new Map();
const floodEnds = new Map();
let stopQuestions = false;

const server = net.createServer((socket) => {
  const running = new Map();
  let asked = 0;
  const asks = setInterval(() => {
    if (!stopQuestions) ask(socket, stream(kind.QUESTION, 0), asked, plan.questions[asked++ % plan.questions.length]);
  }, 400);
  socket.setMaxListeners(0); // Each send that waits for room adds one.
  socket.on('error', () => {});
  socket.on('close', () => {
    clearInterval(asks);
    for (const call of running.values()) call.cancelled = true;
  });
  receive(socket, (message) => {
    const { id, method } = message;
    if (method === 'cancel') {
      const call = running.get(id);
      if (call !== undefined) call.cancelled = true;
      return;
    }
    validate(message.item, message.item.of);
    const call = { socket, id, cancelled: false };
    running.set(id, call);
    methods[method](call, message)
      .then(() => call.cancelled || send(socket, { id, end: true, ...call.reply }))
      .catch((error) => call.cancelled || send(socket, { id, failed: String(error) }))
      .finally(() => running.delete(id));
  });
});

const methods = {
  async chat(call, { item: request, which, chunks }) {
    const known = (which.unpaced ? plan.unpaced : plan.paced)[which.thread];
    const chat = known[which.index % known.length];
    check(request.body.length === chat.request && chunks === chat.chunks.length, 'another chat');
    let next = performance.now();
    for (let seq = 0; seq < chat.chunks.length; seq++) {
      if (!which.unpaced) {
        const wait = next - performance.now();
        if (wait > 0) await pause(wait);
        next += 1000 / plan.pace;
      }
      const tool = chat.tools.findIndex((it) => it.at === seq);
      const done = tool < 0 ? undefined : new Promise((resolve) => tools.set(`${request.of} ${tool}`, resolve));
      await write(call, item(request.of, seq, chat.chunks[seq]));
      if (done === undefined) continue;
      await done;
      next = performance.now();
    }
  },

  async tool(call, { item: request, which, tool: index }) {
    const known = (which.unpaced ? plan.unpaced : plan.paced)[which.thread];
    const tool = known[which.index % known.length].tools[index];
    check(request.body.length === tool.arguments, 'other arguments');
    let seq = 0;
    for (const len of tool.progress) {
      if (seq === 1 && tool.approval !== null) {
        await new Promise((resolve) => {
          ask(call.socket, stream(kind.APPROVAL, request.of), 0, tool.approval, resolve);
        });
      }
      await write(call, item(request.of, seq++, len));
    }
    for (const len of fragments(tool.result)) await write(call, item(request.of, seq++, len));
  },

  async result(call, { chat, tool }) {
    const done = tools.get(`${chat} ${tool}`);
    check(done !== undefined, 'no chat waits for it');
    tools.delete(`${chat} ${tool}`);
    done();
  },

  async answer(call, { of, seq }) {
    const key = `${of} ${seq}`;
    const question = questions.get(key);
    if (question === undefined) {
      recorder.tally.duplicated++;
      return;
    }
    questions.delete(key);
    recorder.time('Question', Math.max(0, now() - question.asked - question.thinks));
    question.waits?.();
  },

  async flood(call, { item: request }) {
    for (let seq = 0; !call.cancelled; seq++) {
      // The event loop must run, or no cancel is read.
      if (seq % 64 === 63) await new Promise(setImmediate);
      await send(call.socket, { id: call.id, item: item(request.of, seq, 81) });
    }
    floodEnds.set(request.of, now());
  },

  async floodEnd(call, { of }) {
    call.reply = { ended: floodEnds.get(of) ?? 0 };
  },

  async stopQuestions(call) {
    stopQuestions = true;
    call.reply = { open: questions.size };
  },
};

function write(call, chunk) {
  check(!call.cancelled, 'cancelled');
  return send(call.socket, { id: call.id, item: chunk });
}

function ask(socket, of, seq, micros, waits) {
  questions.set(`${of} ${seq}`, { asked: now(), thinks: micros * 1000, waits });
  recorder.count('questions asked');
  send(socket, { push: { item: item(of, seq, 181), micros } });
}

function check(right, what) {
  if (!right) throw new Error(what);
}

server.listen(plan.path, () => report('Ready'));
whenInputCloses(() => {
  recorder.tally.lost += questions.size;
  recorder.reportMeasurements();
  fs.rmSync(plan.path, { force: true });
  process.exit(0);
});
