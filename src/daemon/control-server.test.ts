/**
 * Goal: the control socket answers what it should, survives whatever a client sends, and stops in good order.
 *
 * Method: a real socket in a temporary directory, our client, and raw connections for what our client would
 * never send: garbage, half lines, lines too long, too many requests, connections that go away.
 */

import { mkdirSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createConnection, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { DryRun, SetOutcome } from '../backup/index.ts';
import { CorruptionError, deferred, LIMITS } from '../base/index.ts';
import { ControlClient, CONTROL_SOCKET_NAME } from './control-client.ts';
import { type ControlHandlers, ControlServer } from './control-server.ts';
import type { CopyOutcome } from './copy-params.ts';
import { DaemonError } from './errors.ts';

const PARAMS = { store: '/store', level: 'full', style: { codec: 'none' }, container: [] } as const;
const PROGRESS = { tracksDone: 1, tracksTotal: 2, bytesRead: 3 };
const OUTCOME: SetOutcome = {
  set: 'X',
  volume: 'vol',
  level: 'full',
  reason: undefined,
  point: 'p',
  base: undefined,
  tracks: 1,
  bytesRead: 1,
  unchanged: 0,
  aliases: 0,
  lanes: 1,
  bytesStored: 1,
  diverted: 0,
  freezeMs: 0.1,
  durationMs: 5,
};

const PLAN: DryRun = {
  volume: 'vol',
  level: 'full',
  base: undefined,
  reason: undefined,
  tracks: 2,
  zeroTracks: 1,
  bytes: 65_536,
};

const COPY: CopyOutcome = {
  volume: 'vol',
  snapshot: undefined,
  targets: ['/copy.raw'],
  level: 'full',
  base: undefined,
  reason: undefined,
  point: 'p1',
  tracks: 2,
  bytesRead: 1,
  bytesWritten: 1,
  bytesZeroed: 0,
  bytesSkipped: 0,
  diverted: 0,
  freezeMs: 0.1,
  durationMs: 5,
};

function makeHandlers(changed: Partial<ControlHandlers> = {}): ControlHandlers {
  return {
    status: async () => ({ state: 'fine' }),
    show: async () => ({ name: 'vol' }),
    backup: async () => [OUTCOME],
    backupPlan: async () => [PLAN],
    copy: async () => COPY,
    copyPlan: async ({ targets }) => ({ ...PLAN, targets, snapshot: undefined }),
    fillFromMedia: async ({ set }) => ({ volume: 'vol', set, tracks: 1, passedOver: 0, missingTracks: 0 }),
    snapshotCreate: async ({ name }) => [{ volume: 'vol', name }],
    snapshotList: async () => [],
    snapshotDelete: async (name) => ({ name }),
    snapshotRollback: async (name) => ({ name, tracks: 1 }),
    snapshotChanges: async ({ from }) => ({ from, tracks: 0, extents: [] }),
    snapshotClone: async ({ name }) => ({ name }),
    cancel: async (session) => ({ session: session ?? 'the one' }),
    grow: async (sizeBytes) => ({ sizeBytes }),
    scrub: async (params) => params,
    replace: async (params) => params,
    ...changed,
  };
}

/** A directory with a short name: raw connections cannot go through a path too long for an address. */
function makeDirectory(t: Test): string {
  const directory = mkdtempSync(join(tmpdir(), 'cowbell-'));
  t.teardown(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

async function start(t: Test, handlers: ControlHandlers, directory = makeDirectory(t)) {
  const path = join(directory, CONTROL_SOCKET_NAME);
  const server = await ControlServer.start({ path, handlers });
  t.teardown(() => server.close());
  return { directory, path, server };
}

async function connect(t: Test, directory: string): Promise<ControlClient> {
  const client = await ControlClient.connect(directory);
  if (client === undefined) throw new Error('nobody serves');
  t.teardown(() => client.close());
  return client;
}

/** A connection without our client, with the lines that came back. */
async function connectRaw(t: Test, path: string) {
  const socket: Socket = createConnection({ path });
  let text = '';
  const ended = deferred();
  const arrivals: (() => void)[] = [];
  socket.setEncoding('utf8');
  socket.on('data', (more) => {
    text += String(more);
    for (const check of arrivals) check();
  });
  socket.on('error', () => undefined);
  socket.on('close', () => ended.resolve());
  t.teardown(() => socket.destroy());
  const lines = (): unknown[] =>
    text
      .split('\n')
      .slice(0, -1)
      .map((line) => JSON.parse(line) as unknown);
  const received = (count: number): Promise<unknown[]> =>
    new Promise((resolve) => {
      const check = (): void => {
        if (lines().length >= count) resolve(lines());
      };
      arrivals.push(check);
      check();
    });
  return { socket, lines, received, ended: ended.promise };
}

t.test('the socket is for its owner alone, and replaces a leftover', async (t) => {
  const first = await start(t, makeHandlers());
  t.equal(statSync(first.path).mode & 0o777, 0o600);
  await first.server.close();
  t.throws(() => statSync(first.path), { code: 'ENOENT' });
  writeFileSync(first.path, 'precious');
  await t.rejects(ControlServer.start({ path: first.path, handlers: makeHandlers() }), {
    code: 'cannot-listen',
    message: /no socket/,
  });
});

t.test('nobody serves: no directory, no socket, a socket without listener', async (t) => {
  const directory = makeDirectory(t);
  t.equal(await ControlClient.connect(join(directory, 'missing')), undefined);
  t.equal(await ControlClient.connect(directory), undefined);
});

t.test('requests are answered, several at once, errors with their code', async (t) => {
  const slow = deferred<SetOutcome>();
  const { directory } = await start(
    t,
    makeHandlers({
      backup: async (params, events) => {
        t.strictSame(params, PARAMS);
        events.session('S1');
        events.progress(PROGRESS);
        events.warning('beware');
        return [await slow.promise];
      },
      show: async () => {
        throw new CorruptionError('State is damaged', { where: 'state.mdb' });
      },
      cancel: async () => {
        throw new DaemonError('unknown-session', 'No session', { volume: 'v', session: undefined });
      },
    }),
  );
  const client = await connect(t, directory);
  const seen: unknown[] = [];
  const backup = client.request(
    { command: 'backup', params: PARAMS },
    {
      onSession: (id) => seen.push(id),
      onProgress: (progress) => seen.push(progress),
      onWarning: (sentence) => seen.push(sentence),
    },
  );
  t.strictSame(await client.request({ command: 'status' }), { state: 'fine' }, 'overtakes the backup');
  await t.rejects(client.request({ command: 'cancel', params: {} }), {
    name: 'RemoteError',
    code: 'unknown-session',
    message: 'No session',
  });
  await t.rejects(client.request({ command: 'show' }), {
    name: 'CorruptionError',
    place: { where: 'state.mdb' },
  });
  slow.resolve(OUTCOME);
  t.match(await backup, [{ set: 'X', tracks: 1 }]);
  t.strictSame(seen, ['S1', PROGRESS, 'beware']);
});

t.test('a path too long for a socket address works all the same', async (t) => {
  const directory = join(makeDirectory(t), 'd'.repeat(60), 'e'.repeat(60));
  mkdirSync(directory, { recursive: true });
  const { server, path } = await start(t, makeHandlers(), directory);
  t.ok(Buffer.byteLength(path) > LIMITS.socketPathBytesMax);
  t.equal(statSync(path).mode & 0o777, 0o600);
  const client = await connect(t, directory);
  t.strictSame(await client.request({ command: 'show' }), { name: 'vol' });
  await server.close();
  t.throws(() => statSync(path), { code: 'ENOENT' });
});

t.test('garbage is answered and the connection goes on; blank lines are nothing', async (t) => {
  const { path } = await start(t, makeHandlers());
  const raw = await connectRaw(t, path);
  raw.socket.write('\n  \r\nnonsense\n{"id":4,"command":"fly"}\n{"id":5,"comm');
  await raw.received(2);
  raw.socket.write('and":"show"}\n');
  t.match(await raw.received(3), [
    { id: null, event: 'error', error: { code: 'bad-request', message: /no JSON/ } },
    { id: 4, event: 'error', error: { code: 'bad-request', message: /"fly" is unknown/ } },
    { id: 5, event: 'done', result: { name: 'vol' } },
  ]);
});

t.test('a line too long ends the connection, not the server', async (t) => {
  const { path, directory } = await start(t, makeHandlers());
  const raw = await connectRaw(t, path);
  raw.socket.write('x'.repeat(LIMITS.controlLineBytesMax + 1));
  t.match(await raw.received(1), [{ id: null, event: 'error', error: { message: /longer than/ } }]);
  raw.socket.end();
  await raw.ended;
  const client = await connect(t, directory);
  t.ok(await client.request({ command: 'status' }));
});

t.test('a half-closed client still gets its answers, and half a line is nothing', async (t) => {
  const { path } = await start(t, makeHandlers());
  const raw = await connectRaw(t, path);
  raw.socket.end('{"id":1,"command":"show"}\n{"id":2,"comma');
  await raw.ended;
  t.strictSame(raw.lines(), [{ id: 1, event: 'done', result: { name: 'vol' } }]);
});

t.test('an id in use, and too many requests, are refused', async (t) => {
  const gate = deferred<object>();
  const { path } = await start(t, makeHandlers({ status: () => gate.promise }));
  const raw = await connectRaw(t, path);
  const limit = LIMITS.controlInFlightCountMax;
  for (let id = 0; id < limit; id += 1) raw.socket.write(`{"id":${id},"command":"status"}\n`);
  raw.socket.write('{"id":3,"command":"status"}\n{"id":99,"command":"status"}\n');
  t.match(await raw.received(2), [
    { id: 3, event: 'error', error: { code: 'bad-request', message: /Request 3 still runs/ } },
    { id: 99, event: 'error', error: { code: 'too-many' } },
  ]);
  gate.resolve({});
  t.equal((await raw.received(limit + 2)).length, limit + 2);
});

t.test('connections beyond the limit are told so', async (t) => {
  const { path } = await start(t, makeHandlers());
  const raws = [];
  for (let index = 0; index < LIMITS.controlConnectionCountMax; index += 1) {
    const raw = await connectRaw(t, path);
    raw.socket.write('{"id":0,"command":"show"}\n');
    await raw.received(1);
    raws.push(raw);
  }
  const beyond = await connectRaw(t, path);
  t.match(await beyond.received(1), [{ id: null, event: 'error', error: { code: 'too-many' } }]);
  await beyond.ended;
  for (const raw of raws) raw.socket.destroy();
});

t.test('a client that goes away does not end its request', async (t) => {
  const started = deferred();
  const work = deferred<object>();
  let finished = false;
  const { directory } = await start(
    t,
    makeHandlers({
      backup: async () => {
        started.resolve();
        await work.promise;
        finished = true;
        return [OUTCOME];
      },
    }),
  );
  const client = await connect(t, directory);
  const lost = t.rejects(client.request({ command: 'backup', params: PARAMS }), { code: 'control-lost' });
  await started.promise;
  client.close();
  await lost;
  await t.rejects(client.request({ command: 'show' }), { code: 'control-lost' }, 'and stays lost');
  const other = await connect(t, directory);
  work.resolve({});
  await other.request({ command: 'show' });
  t.ok(finished);
});

t.test('a stop answers what runs, then ends the connections', async (t) => {
  const work = deferred<object>();
  const { directory, server } = await start(t, makeHandlers({ status: () => work.promise }));
  const client = await connect(t, directory);
  const answer = client.request({ command: 'status' });
  await client.request({ command: 'show' });
  const closed = server.close();
  work.resolve({ last: true });
  t.strictSame(await answer, { last: true });
  await closed;
  t.equal(await ControlClient.connect(directory), undefined);
});

t.test('what is no server of this protocol is named', async (t) => {
  const directory = makeDirectory(t);
  const { createServer } = await import('node:net');
  const server = createServer((socket) => socket.end('SSH-2.0\n'));
  await new Promise<void>((resolve) => server.listen(join(directory, CONTROL_SOCKET_NAME), resolve));
  t.teardown(() => server.close());
  const client = await connect(t, directory);
  await t.rejects(client.request({ command: 'status' }), {
    code: 'bad-reply',
    message: /no server of this version/,
  });
});
