// A bridge as one would write it with Node, ws and ioredis: the same handshake, the same checks of
// TELEMETRY, the same XADD. It does less than agent-bridge: duplicate JSON keys pass (JSON.parse
// keeps the last), and there is no ownership, no commands, no nonce expiry and no memory of frames.
'use strict';
const crypto = require('crypto');
const http = require('http');
const { WebSocketServer } = require('ws');
const Redis = require('ioredis');

const port = Number(process.env.PORT);
const secret = process.env.SECRET;
const maxFrame = 262144, maxDepth = 16, maxPending = 16384;
const redis = new Redis(process.env.REDIS_PATH, { enableAutoPipelining: true });
const agentId = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;
const uuid4 = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/i;
const rfc3339 = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)$/i;
const nonces = new Set();
const sockets = new Set();
let pending = 0, paused = false, epoch = Date.now();

function authentic(req) {
  const h = req.headers, ts = h['x-timestamp'], nonce = h['x-nonce'], id = h['x-agent-id'];
  if (!agentId.test(id || '') || !uuid4.test(nonce || '') || !rfc3339.test(ts || '')) return 400;
  const mac = crypto.createHmac('sha256', secret).update(`GET|${req.url}|${ts}|${nonce}|${id}`).digest();
  const given = Buffer.from(h['x-agent-auth'] || '', 'hex');
  if (given.length !== mac.length || !crypto.timingSafeEqual(given, mac)) return 401;
  if (Math.abs(Date.now() - Date.parse(ts)) > 300000) return 401;
  const key = id + ' ' + nonce;
  if (nonces.has(key)) return 401;
  nonces.add(key);
  return 0;
}

function depth(v, left) {
  if (v === null || typeof v !== 'object') return true;
  if (left === 0) return false;
  for (const k in v) if (!depth(v[k], left - 1)) return false;
  return true;
}

function shortText(v, max) {
  return v === undefined || (typeof v === 'string' && Buffer.byteLength(v) <= max);
}

function refusal(f, id) {
  if (f === null || typeof f !== 'object' || Array.isArray(f) || !depth(f, maxDepth)) return 'bad_json';
  if (f.type === 'HELLO') return f.agent_id === id && typeof f.version === 'string' &&
    Array.isArray(f.capabilities) ? null : 'bad_field';
  if (f.type !== 'TELEMETRY') return 'unknown_type';
  if (f.agent_id !== id) return 'bad_agent';
  if (typeof f.ts !== 'string' || !rfc3339.test(f.ts) || Number.isNaN(Date.parse(f.ts))) return 'bad_field';
  if (f.metrics === null || typeof f.metrics !== 'object' || Array.isArray(f.metrics)) return 'bad_field';
  if (!shortText(f.boot_id, 64)) return 'bad_field';
  if (f.seq !== undefined && (!Number.isInteger(f.seq) || f.seq < 0)) return 'bad_field';
  return null;
}

function pressure() {
  const now = pending > maxPending;
  if (now === paused || (paused && pending > maxPending / 2)) return;
  paused = now;
  for (const s of sockets) paused ? s.pause() : s.resume();
}

function onFrame(ws, data, binary) {
  const text = binary ? null : data.toString('utf8');
  let frame;
  try { frame = JSON.parse(text); } catch { frame = null; }
  const why = text === null || text.includes('\\u0000') ? 'bad_json' : refusal(frame, ws.agentId);
  if (why) { ws.send(JSON.stringify({ type: 'ERROR', code: why })); return; }
  if (frame.type === 'HELLO') { ws.send(JSON.stringify({ type: 'WELCOME', session_id: ws.connId })); return; }
  pending++;
  redis.xadd('viw.telemetry', 'MAXLEN', '~', process.env.MAXLEN, '*', 'agent_id', ws.agentId, 'frame', text,
    'bridge_id', 'node', 'conn_id', ws.connId, 'epoch', ws.epoch, 'ip', ws.ip,
    'received_at', new Date().toISOString()).finally(() => { pending--; if (paused) pressure(); });
  if (pending > maxPending) pressure();
}

const server = http.createServer((req, res) => { res.writeHead(426); res.end(); });
const wss = new WebSocketServer({ noServer: true, maxPayload: maxFrame, perMessageDeflate: false });
server.on('upgrade', (req, socket, head) => {
  const status = authentic(req);
  if (status) { socket.end(`HTTP/1.1 ${status} Refused\r\nContent-Length: 0\r\n\r\n`); return; }
  wss.handleUpgrade(req, socket, head, (ws) => {
    ws.agentId = req.headers['x-agent-id'];
    ws.connId = crypto.randomUUID();
    ws.epoch = String(++epoch);
    ws.ip = socket.remoteAddress;
    sockets.add(ws);
    ws.on('close', () => sockets.delete(ws));
    ws.on('error', () => {});
    ws.on('message', (data, binary) => onFrame(ws, data, binary));
    ws.send(JSON.stringify({ type: 'HELLO_ACK', agent_id: ws.agentId, conn_id: ws.connId, epoch }));
  });
});
server.listen({ port, host: '127.0.0.1', backlog: 4096 }, () => console.log('listening'));
