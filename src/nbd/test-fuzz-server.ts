/**
 * The server's side under mutated client streams, for the fuzzer: the two machines alone, where a run takes
 * less than a millisecond, and a real server on Unix sockets.
 *
 * The device asserts each range, keeps every read it answered, and finishes calls at once, or later and out of
 * order, some of them with a failure.
 */

import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { assert, KIB, type MaybePromise, type SeededRandom } from '../base/index.ts';
import { NbdClient } from './client.ts';
import { type Export, offerOf } from './export.ts';
import { Fence } from './fence.ts';
import { type HandshakeDecision, type HandshakeView, ServerHandshake } from './handshake.ts';
import { type NbdLimits, nbdLimits } from './limits.ts';
import { NbdServer } from './server.ts';
import { TestDevice, type TestDeviceOptions } from './test-device.ts';
import { cutIntoChunks } from './test-mutations.ts';
import { assertAnswered, type GivenRead, readRequests } from './test-replies.ts';
import { SESSION_EXPORT } from './test-sessions.ts';
import { attach, contextOf } from './test-transmission.ts';

/** Whoever waits this long hangs: nothing here takes more than some milliseconds. */
const HANG_MS = 10_000;
/** Small enough that recorded sessions reach them. */
const TIGHT_LIMITS: Partial<NbdLimits> = {
  inFlightCountMax: 3,
  inFlightBytesMax: 8 * KIB,
  waitingBytesMax: 8 * KIB,
  waitingCountMax: 3,
  replyBytesMax: 4 * KIB,
  payloadBytesMax: 64 * KIB,
  optionBytesMax: 1024,
  optionCountMax: 8,
  extentCountMax: 4,
  cacheBytesMax: 4 * KIB,
  sparseReadBytesMin: 4 * KIB,
};

/** A device that remembers what it gave. */
class FuzzDevice extends TestDevice {
  readonly given: GivenRead[] = [];

  constructor(options: TestDeviceOptions) {
    super({ sizeBytes: SESSION_EXPORT.sizeBytes, ...options });
    for (let at = 0; at < 20 * KIB; at += 4) this.bytes.writeUInt32BE(0xc0b0_0000 + at, at);
    this.bytes.copy(this.bytes, 256 * KIB, 0, 4 * KIB);
  }

  override read(target: Buffer, offsetBytes: number): MaybePromise<void> {
    const note = (): void => void this.given.push({ offsetBytes, bytes: Buffer.from(target) });
    const pending = super.read(target, offsetBytes);
    return pending === undefined ? note() : pending.then(note);
  }

  forget(): void {
    this.given.length = 0;
    this.calls.length = 0;
  }
}

function exportOf(device: FuzzDevice): Export {
  return {
    name: SESSION_EXPORT.name,
    description: 'fuzzed',
    device,
    readOnly: false,
    multiConn: true,
    contexts: [contextOf('x-test:everywhere', 3)],
    findContext: (name) => (name.startsWith('cowbell:') ? contextOf(name, 1) : undefined),
  };
}

/** What one kind of server is made of; devices are reused, since a fresh one costs more than a run. */
class Subject {
  readonly device: FuzzDevice;
  readonly view: HandshakeView;
  readonly limits: NbdLimits;
  readonly #before: Buffer;
  /** Whether calls wait; drawn for each run. */
  holdChance = 0;
  random: SeededRandom | undefined;

  constructor(options: TestDeviceOptions, limits: Partial<NbdLimits>) {
    this.device = new FuzzDevice({
      ...options,
      holds: () => this.holdChance > 0 && this.random?.chance(this.holdChance) === true,
    });
    this.limits = nbdLimits(limits);
    const exported = exportOf(this.device);
    const offer = offerOf(exported, this.limits.payloadBytesMax, this.readOnly);
    const isMeant = (name: string): boolean => name === '' || name === SESSION_EXPORT.name;
    this.view = {
      list: () => [offer],
      find: (name) => (isMeant(name) ? offer : undefined),
      isClosing: () => false,
    };
    this.#before = Buffer.from(this.device.bytes);
  }

  get readOnly(): boolean {
    return this.device.capabilities.readOnly;
  }

  /** Finishes some of the held calls, in any order; all where `isEnd`. */
  release(random: SeededRandom, isEnd: boolean): void {
    const { held } = this.device;
    const goesOn = (): boolean => held.length > 0 && (isEnd || random.chance(1 / 2));
    while (goesOn()) {
      const failure = random.chance(1 / 16) ? new Error('Injected failure') : undefined;
      random.pick(held).finish(failure);
    }
  }

  /** Fails where a read-only device changed; makes the next run begin as this one did. */
  reset(): void {
    const { device } = this;
    const hasChanged = device.calls.some((call) => !/^(read|flush|extents) /.test(call));
    assert(!hasChanged || !this.readOnly, 'A read-only device was changed');
    if (hasChanged) this.#before.copy(device.bytes);
    else if (this.readOnly)
      assert(device.bytes.equals(this.#before), 'The bytes of a read-only device changed');
    device.forget();
  }
}

const SUBJECTS = [
  new Subject({}, {}),
  new Subject({ extents: true }, { sparseReadBytesMin: 4 * KIB }),
  new Subject({ extents: true }, TIGHT_LIMITS),
  new Subject({ readOnly: true, extents: true }, {}),
  new Subject({ blockSizeBytes: 4096, trim: false }, TIGHT_LIMITS),
] as const;

/** Runs a stream through handshake and transmission, without a socket. */
export async function fuzzMachines(random: SeededRandom, stream: Buffer): Promise<void> {
  const subject = random.pick(SUBJECTS);
  subject.holdChance = random.pick([0, 0, 0.3, 1]);
  subject.random = random;
  const chunks = cutIntoChunks(random, stream);
  const handshake = new ServerHandshake(subject.view, subject.limits, 'off');
  let decision: HandshakeDecision = { kind: 'continue' };
  let outputBytes = 0;
  while (decision.kind === 'continue') {
    const chunk = chunks.shift();
    if (chunk === undefined) return;
    const step = handshake.receive(chunk);
    outputBytes += step.output.length;
    decision = step.decision;
  }
  assert(outputBytes < 1024 * KIB, `A handshake was answered with ${outputBytes} bytes`);
  if (decision.kind !== 'transmission') return;
  if (decision.rest.length > 0) chunks.unshift(decision.rest);
  try {
    await transmit(random, subject, chunks, decision.negotiated);
  } finally {
    subject.holdChance = 0;
    subject.reset();
  }
}

async function transmit(
  random: SeededRandom,
  subject: Subject,
  chunks: readonly Buffer[],
  terms: Extract<HandshakeDecision, { kind: 'transmission' }>['negotiated'],
): Promise<void> {
  const { device, readOnly, limits } = subject;
  const asked = readRequests(Buffer.concat(chunks), terms.replies);
  const { port, transmission, fence } = attach(device, new Fence(), readOnly, limits, terms);
  const abortAt = random.chance(1 / 8) ? random.below(chunks.length + 1) : -1;
  const isOver = (): boolean => port.finishedCount > 0 || port.hungUp.length > 0;
  for (const [index, chunk] of chunks.entries()) {
    for (let turn = 0; transmission.isBlocked && !isOver(); turn += 1) {
      assert(turn < 10_000, 'A blocked transmission does not go on');
      subject.release(random, turn > 4);
      await nextTurn();
    }
    if (isOver()) break;
    if (index === abortAt) transmission.abort();
    transmission.receive(chunk);
    subject.release(random, false);
    if (random.chance(1 / 32)) await nextTurn();
  }
  if (abortAt === chunks.length) transmission.abort();
  else if (abortAt < 0 && random.chance(1 / 16)) transmission.shutdown();
  else transmission.end();
  const isAborted = abortAt >= 0;
  const isBusy = (): boolean =>
    device.held.length > 0 || transmission.inFlightCount > 0 || !(isAborted || isOver());
  for (let turn = 0; turn < 3 || isBusy(); turn += 1) {
    assert(
      turn < 10_000,
      `A session that has ended goes on, ${transmission.inFlightCount} requests in flight`,
    );
    subject.release(random, true);
    await nextTurn();
  }
  await transmission.whenIdle();
  const [error] = port.programmerErrors;
  if (error !== undefined) throw error;
  assert(fence.changeCount === 0, `The fence still knows ${fence.changeCount} changes`);
  const isComplete = !isAborted && port.hungUp.length === 0;
  assertAnswered(asked, port.output, { mode: terms.replies, given: device.given, isComplete });
}

/** Whether a promise settles in time; whoever does not hangs. */
export async function withinTime<T>(what: string, promise: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} took more than ${HANG_MS} ms`)), HANG_MS);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Servers that live as long as the fuzzer, so that what they lose adds up. */
export class FuzzedServers {
  readonly #servers: readonly {
    readonly server: NbdServer;
    readonly path: string;
    readonly device: FuzzDevice;
  }[];
  readonly #broken: Error[] = [];

  private constructor(directory: string) {
    const later = (device: FuzzDevice): void => {
      setImmediate(() => device.held[Math.floor(device.held.length / 2)]?.finish());
    };
    const kinds: readonly [TestDeviceOptions, Partial<NbdLimits>][] = [
      [{ extents: true }, {}],
      [{ extents: true }, TIGHT_LIMITS],
      [{ readOnly: true }, {}],
    ];
    this.#servers = kinds.map(([options, limits], index) => {
      const device: FuzzDevice = new FuzzDevice({
        ...options,
        // Every other kind of call finishes in another turn of the loop.
        holds: (_, offsetBytes) => {
          const isHeld = index === 1 && offsetBytes % 1024 === 0;
          if (isHeld) later(device);
          return isHeld;
        },
      });
      const server = new NbdServer({
        exports: [exportOf(device)],
        limits: { ...limits, handshakeMsMax: HANG_MS / 2, closeMsMax: HANG_MS / 4 },
        onProgrammerError: (error) => void this.#broken.push(error),
        log: ({ level, message, error }) => {
          if (level === 'error') this.#broken.push(new Error(message, { cause: error }));
        },
      });
      return { server, device, path: join(directory, `fuzzed-${index}.sock`) };
    });
  }

  static async open(directory: string): Promise<FuzzedServers> {
    const servers = new FuzzedServers(directory);
    for (const { server, path } of servers.#servers) await server.listen({ kind: 'unix', path });
    return servers;
  }

  /** Plays the streams at once, each on its own connection; then a well-behaved client must be served right. */
  async play(random: SeededRandom, streams: readonly Buffer[]): Promise<void> {
    const { server, path, device } = random.pick(this.#servers);
    const endings = streams.map(() =>
      random.pick(['end', 'end', 'end', 'destroy', 'deaf', 'reset'] as const),
    );
    const chunked = streams.map((stream) => cutIntoChunks(random, stream));
    const before = device.capabilities.readOnly ? Buffer.from(device.bytes) : undefined;
    await withinTime(
      'Ending connections',
      Promise.all(chunked.map((chunks, index) => converse(path, chunks, endings[index] ?? 'end'))),
    );
    await this.#assertServing(random, path, device);
    if (before !== undefined) assert(device.bytes.equals(before), 'A read-only export changed');
    const departed = async (): Promise<void> => {
      while (server.connectionCount > 0) await nextTurn();
    };
    await withinTime(`${server.connectionCount} connections that have ended`, departed());
    const [error] = this.#broken.splice(0);
    if (error !== undefined) throw error;
    device.forget();
  }

  async close(): Promise<void> {
    for (const { server } of this.#servers) await withinTime('Closing a server', server.close());
  }

  async #assertServing(random: SeededRandom, path: string, device: FuzzDevice): Promise<void> {
    const address = { transport: { kind: 'unix', path }, exportName: SESSION_EXPORT.name } as const;
    const serve = async (): Promise<void> => {
      const client = await NbdClient.connect(address);
      const offsetBytes = 512 * random.below(SESSION_EXPORT.sizeBytes / 512 - 8);
      const content = Buffer.alloc(1024, random.below(256));
      if (!device.capabilities.readOnly) await client.write(content, offsetBytes);
      const target = Buffer.alloc(2048);
      await client.read(target, offsetBytes);
      const isRight = target.equals(device.bytes.subarray(offsetBytes, offsetBytes + target.length));
      const isWritten = device.capabilities.readOnly || target.subarray(0, 1024).equals(content);
      assert(isRight && isWritten, `A good client read wrong bytes at ${offsetBytes}`);
      await client.disconnect();
    };
    await withinTime('Serving a good client', serve());
  }
}

type Ending = 'end' | 'destroy' | 'deaf' | 'reset';

/**
 * Sends the chunks and ends the connection; returns when it is closed. `deaf` takes no answers until then,
 * `destroy` closes with answers unread, `reset` does that in the middle.
 */
async function converse(path: string, chunks: readonly Buffer[], ending: Ending): Promise<void> {
  const socket: Socket = connect({ path, allowHalfOpen: true });
  const closed = new Promise<void>((resolve) => socket.once('close', () => resolve()));
  socket.on('error', () => {}); // Whatever the server does to this connection is right.
  if (ending === 'end' || ending === 'destroy') socket.resume();
  socket.on('end', () => socket.end());
  const last = ending === 'reset' ? Math.floor(chunks.length / 2) : chunks.length;
  for (const [index, chunk] of chunks.entries()) {
    if (socket.destroyed || index >= last) break;
    socket.write(chunk);
    if (index % 4 === 0) await nextTurn();
  }
  if (ending === 'reset' || ending === 'destroy') {
    await nextTurn();
    socket.destroy();
  } else {
    if (ending === 'deaf') {
      await nextTurn();
      socket.resume();
    }
    socket.end();
  }
  await closed;
}
