/**
 * Records NBD sessions between real clients and `cowbell serve`, for the fuzzer.
 *
 *     client  <--->  this process, a proxy that notes what passes  <--->  cowbell serve
 *
 * Each client runs once; each of its connections becomes `fixtures/nbd-sessions/<client>[-n].session`
 * (`src/nbd/test-sessions.ts` has the format), cut off at a length that keeps mutation quick. Two servers that
 * are not ours are recorded too, with our client before them. What was there before is replaced.
 */
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  freePort,
  must,
  mustCowbell,
  run,
  type Running,
  Running as Process,
  startCowbell,
} from '../native-tests/support/process.ts';
import { NbdClient, type NbdConnectOptions } from '../src/nbd/index.ts';
import {
  encodeSegments,
  OWN_CLIENTS,
  playScript,
  type Segment,
  SESSION_EXPORT,
  SESSIONS_DIRECTORY,
} from '../src/nbd/test-sessions.ts';

const directory = mkdtempSync(join(tmpdir(), 'cowbell-record-'));
const at = (name: string): string => join(directory, name);
const KIB = 1024;

/** The sessions that pass a proxy, by connection. */
class Recorder {
  readonly sessions: Segment[][] = [];
  readonly #open = new Set<Socket>();

  readonly target: () => Socket;

  constructor(target: () => Socket) {
    this.target = target;
  }

  accept(client: Socket): void {
    const server = this.target();
    const segments: Segment[] = [];
    this.sessions.push(segments);
    for (const [from, source, sink] of [
      ['client', client, server],
      ['server', server, client],
    ] as const) {
      this.#open.add(source);
      source.on('data', (bytes: Buffer) => {
        segments.push({ from, bytes });
        sink.write(bytes);
      });
      source.on('end', () => sink.end());
      source.on('error', () => sink.destroy());
      source.on('close', () => this.#open.delete(source));
    }
  }

  /** Waits until all connections have ended, and writes down what they said. */
  async save(name: string): Promise<void> {
    for (const socket of this.#open) await new Promise((resolve) => socket.once('close', resolve));
    const sessions = this.sessions.splice(0).filter((segments) => segments.length > 1);
    for (const [index, segments] of sessions.entries()) {
      const file = `${name}${index === 0 ? '' : `-${index}`}.session`;
      const bytes = encodeSegments(segments);
      writeFileSync(SESSIONS_DIRECTORY + file, bytes);
      console.log(`${file}: ${bytes.length} bytes`);
    }
  }
}

async function listen(server: Server, where: string | number): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    if (typeof where === 'string') server.listen(where, resolve);
    else server.listen(where, '127.0.0.1', resolve);
  });
}

/** Data in two places, in pieces, and a hole between: the rest of the volume. */
async function fillVolume(uri: string): Promise<void> {
  const client = await NbdClient.connect(uri);
  const pattern = (lengthBytes: number): Buffer =>
    Buffer.from(Array.from({ length: lengthBytes }, (_, index) => 1 + (index % 251)));
  await client.write(pattern(16 * KIB), 0);
  await client.write(pattern(4 * KIB), 32 * KIB);
  await client.write(pattern(4 * KIB), 256 * KIB);
  await client.flush();
  await client.disconnect();
}

/** The command of each foreign client, by the name of its session. */
function foreignClients(uri: string, port: number): Readonly<Record<string, readonly string[]>> {
  const io = (...commands: string[]): string[] => [
    'qemu-io',
    '-f',
    'raw',
    ...commands.flatMap((command) => ['-c', command]),
    uri,
  ];
  const list = uri.replace('/vol?', '/?');
  return {
    nbdinfo: ['nbdinfo', '--json', uri],
    'nbdinfo-list': ['nbdinfo', '--list', list],
    'nbdinfo-map': ['nbdinfo', '--map', uri],
    'nbdcopy-out': ['nbdcopy', '--connections=1', '--request-size=32768', uri, 'null:'],
    'nbdcopy-in': ['nbdcopy', '--connections=1', '--request-size=4096', '--flush', at('in.raw'), uri],
    'nbd-client-list': ['nbd-client', '-l', '127.0.0.1', String(port)],
    'qemu-img-info': ['qemu-img', 'info', '-f', 'raw', uri],
    'qemu-img-map': ['qemu-img', 'map', '-f', 'raw', '--output=json', uri],
    'qemu-io-read': io('read 0 4k', 'read 512 512', 'aio_read 32k 8k', 'aio_read 256k 4k', 'aio_flush'),
    'qemu-io-write': io(
      'write -P 7 64k 4k',
      'write -f -P 8 80k 512',
      'writev -P 9 96k 512 1k',
      'write -z 100k 8k',
      'write -z -u 120k 4k',
      'discard 128k 4k',
      'flush',
    ),
    fio: [
      'fio',
      '--name=record',
      '--ioengine=nbd',
      `--uri=${uri}`,
      ...'--rw=randrw --bs=512 --iodepth=4 --size=256k --number_ios=24 --randseed=1 --fsync=8'.split(' '),
    ],
    python: ['/usr/bin/python3', '-c', PYTHON, uri],
  };
}

/** libnbd through Python: options by hand, several contexts, pipelined commands, and requests to be refused. */
const PYTHON = `
import nbd, sys
h = nbd.NBD()
h.set_strict_mode(0)
h.set_opt_mode(True)
h.connect_uri(sys.argv[1])
h.opt_list(lambda *words: 0)
for query in ([], ['base:'], ['base:allocation', 'qemu:dirty-bitmap:x', 'cowbell:changed-since:y']):
    h.clear_meta_contexts()
    for name in query:
        h.add_meta_context(name)
    h.opt_list_meta_context(lambda *words: 0)
h.set_export_name('missing')
try:
    h.opt_info()
except nbd.Error:
    pass
h.set_export_name('vol')
h.clear_meta_contexts()
h.add_meta_context('base:allocation')
h.opt_info()
h.opt_go()
def attempt(call, *words):
    try:
        call(*words)
    except nbd.Error:
        pass
for i in range(8):
    h.aio_pread(nbd.Buffer(512), i * 4096, lambda error: 1)
    h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([i]) * 512), 131072 + i * 1024, lambda error: 1)
while h.aio_in_flight() > 0:
    h.poll(-1)
h.pread_structured(8192, 0, lambda *words: 0, nbd.CMD_FLAG_DF)
attempt(h.pread, 4096, 2 ** 20)
attempt(h.pread, 512, 2 ** 62)
attempt(h.pwrite, b'x' * 512, 2 ** 20 - 256)
attempt(h.pread, 33554432 + 512, 0)
attempt(h.zero, 4096, 4096, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
attempt(h.cache, 65536, 0)
attempt(h.trim, 0, 0)
h.block_status(2 ** 20, 0, lambda *words: 0)
h.block_status(65536, 4096, lambda *words: 0, nbd.CMD_FLAG_REQ_ONE)
h.shutdown()
`;

/** What no tool sends any more: an export chosen by NBD_OPT_EXPORT_NAME, by bytes written by hand. */
async function playExportName(path: string): Promise<void> {
  const option = Buffer.from('\0\0\0\x01IHAVEOPT\0\0\0\x01\0\0\0\x03vol', 'latin1');
  const read = Buffer.alloc(28);
  read.writeUInt32BE(0x25609513, 0);
  read.writeUInt32BE(512, 24);
  const goodbye = Buffer.from(read);
  goodbye.writeUInt16BE(2, 6);
  const socket = connect(path);
  // The answer to the name comes before the transmission, and 124 zeroes with it.
  let wanted = 18 + 10 + 124;
  let phase = 0;
  socket.on('data', (bytes: Buffer) => {
    wanted -= bytes.length;
    if (wanted > 0) return;
    phase += 1;
    wanted = 512 + 16;
    if (phase === 1) socket.write(read);
    else socket.end(goodbye);
  });
  socket.write(option);
  await new Promise((resolve) => socket.once('close', resolve));
}

async function recordOwn(recorder: Recorder, uri: string, prefix: string): Promise<void> {
  for (const { name, options } of OWN_CLIENTS) {
    const client = await NbdClient.connect(uri, options satisfies NbdConnectOptions);
    await Promise.allSettled(playScript(client, (lengthBytes) => Buffer.alloc(lengthBytes)));
    await client.disconnect();
    await recorder.save(`${prefix}${name}`);
  }
}

async function recordClients(): Promise<void> {
  const volume = at('vol');
  await mustCowbell(['volume', 'create', volume, '--size', String(SESSION_EXPORT.sizeBytes)]);
  const server: Running = startCowbell(['serve', volume]);
  await server.waitForLine(/^ready /);
  const recorder = new Recorder(() => connect({ path: join(volume, 'nbd.sock'), allowHalfOpen: true }));
  const path = at('proxy.sock');
  const port = await freePort();
  const proxies = [path, port].map((where) => {
    const proxy = createServer({ allowHalfOpen: true }, (socket) => recorder.accept(socket));
    return { proxy, where };
  });
  for (const { proxy, where } of proxies) await listen(proxy, where);
  const uri = `nbd+unix:///vol?socket=${path}`;
  await fillVolume(`nbd+unix:///vol?socket=${join(volume, 'nbd.sock')}`);
  const image = Buffer.alloc(256 * KIB);
  image.fill('in', 0, 8 * KIB).fill('out', 200 * KIB, 204 * KIB);
  writeFileSync(at('in.raw'), image);
  for (const [name, [command = '', ...args]] of Object.entries(foreignClients(uri, port))) {
    const { status, stderr } = await run(command, args, { cwd: directory });
    if (status !== 0) console.log(`${name} ended with status ${status}: ${stderr.trim()}`);
    await recorder.save(name);
  }
  await playExportName(path);
  await recorder.save('export-name');
  await recordOwn(recorder, uri, '');
  for (const { proxy } of proxies) proxy.close();
  await server.stop();
}

/** Our client before servers that are not ours. */
async function recordServers(): Promise<void> {
  writeFileSync(at('disk.raw'), Buffer.alloc(SESSION_EXPORT.sizeBytes).fill('disk', 0, 16 * KIB));
  const socket = (name: string): string => at(`${name}.sock`);
  const servers = {
    nbdkit: ['nbdkit', '--foreground', '-U', socket('nbdkit'), 'file', at('disk.raw')],
    'qemu-nbd': ['qemu-nbd', '-f', 'raw', '-x', 'vol', '-t', '-k', socket('qemu-nbd'), at('disk.raw')],
  };
  for (const [name, [command = '', ...args]] of Object.entries(servers)) {
    const server = new Process(command, args);
    const recorder = new Recorder(() => connect({ path: socket(name), allowHalfOpen: true }));
    const proxy = createServer({ allowHalfOpen: true }, (client) => recorder.accept(client));
    const path = at(`${name}-proxy.sock`);
    await listen(proxy, path);
    await must('bash', [
      '-c',
      `for i in {1..100}; do [ -S "$1" ] && exit; sleep 0.05; done; exit 1`,
      'wait',
      socket(name),
    ]);
    await recordOwn(recorder, `nbd+unix:///vol?socket=${path}`, `${name}-`);
    proxy.close();
    await server.stop();
  }
}

for (const file of readdirSync(SESSIONS_DIRECTORY)) {
  if (file.endsWith('.session')) rmSync(SESSIONS_DIRECTORY + file);
}
try {
  await recordClients();
  await recordServers();
} finally {
  rmSync(directory, { recursive: true, force: true });
}
