// What gateway-agent costs when it is written with Node and ws: mTLS, HELLO, TELEMETRY from /proc every
// 30 s, HEARTBEAT every 20 s. Measured by bench/bench_agent.py only.
'use strict';
const fs = require('fs'), os = require('os'), crypto = require('crypto'), WebSocket = require('ws');
const [url, id, ca, cert, key] = process.argv.slice(2);
const stamp = () => new Date().toISOString();
let last = cpu(), seq = 0;
const boot = crypto.randomUUID();

function cpu() {
  const v = fs.readFileSync('/proc/stat', 'utf8').split('\n')[0].trim().split(/\s+/).slice(1, 9).map(Number);
  const total = v.reduce((a, b) => a + b, 0);
  return { total, busy: total - v[3] - v[4] };
}

function metrics() {
  const now = cpu(), mem = {};
  for (const line of fs.readFileSync('/proc/meminfo', 'utf8').split('\n')) {
    const m = /^(MemTotal|MemAvailable):\s+(\d+)/.exec(line);
    if (m) mem[m[1]] = m[2] * 1024;
  }
  const s = fs.statfsSync('/'), load = os.loadavg(), used = s.blocks - s.bfree;
  const pct = 100 * (now.busy - last.busy) / Math.max(1, now.total - last.total);
  last = now;
  return { cpu_pct: pct, mem_pct: 100 * (1 - mem.MemAvailable / mem.MemTotal), mem_total_bytes: mem.MemTotal,
    mem_available_bytes: mem.MemAvailable, disk_pct: 100 * used / (used + s.bavail), disk_total_bytes: s.blocks * s.bsize,
    disk_free_bytes: s.bavail * s.bsize, load1: load[0], load5: load[1], load15: load[2], uptime_s: Math.floor(os.uptime()),
    services: {}, helper: 'down' };
}

const ws = new WebSocket(url, ['viworks-agent-v1'], { ca: fs.readFileSync(ca), cert: fs.readFileSync(cert),
  key: fs.readFileSync(key), perMessageDeflate: false,
  headers: { 'X-Agent-Id': id, 'X-Timestamp': stamp(), 'X-Nonce': crypto.randomUUID() } });
const send = f => ws.send(JSON.stringify(f));
const telemetry = () => send({ type: 'TELEMETRY', agent_id: id, ts: stamp(), metrics: metrics(), boot_id: boot, seq: ++seq });
ws.on('message', data => {
  const f = JSON.parse(data);
  if (f.type === 'HELLO_ACK') send({ type: 'HELLO', agent_id: id, version: '1', capabilities: [], boot_id: boot });
  if (f.type === 'WELCOME') { telemetry(); setInterval(telemetry, 30000); setInterval(() => send({ type: 'HEARTBEAT', agent_id: id, ts: stamp() }), 20000); }
});
ws.on('error', e => { console.error(String(e)); process.exit(1); });
