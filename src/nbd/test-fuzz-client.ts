/**
 * The client's side under mutated server streams, for the fuzzer: handshake and reply reader alone, and a real
 * client on a Unix socket before a server that plays a recording.
 *
 * A read's target lies between guard bytes, which nothing may touch.
 */

import { createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { assert, type SeededRandom } from '../base/index.ts';
import { NbdClient } from './client.ts';
import { NbdClientError } from './client-error.ts';
import { type ClientDecision, ClientHandshake } from './client-handshake.ts';
import { COMMAND } from './codec.ts';
import { decodeStatusFilter, EXTENDED_CHUNK_MAGIC } from './codec-chunks.ts';
import { type Pending, ReplyReader } from './reply-reader.ts';
import { withinTime } from './test-fuzz-server.ts';
import { cutIntoChunks } from './test-mutations.ts';
import { type Asked, readRequests } from './test-replies.ts';
import {
  bytesFrom,
  OWN_CLIENTS,
  type OwnClient,
  playScript,
  type Segment,
  SESSION_EXPORT,
  type Session,
} from './test-sessions.ts';

const GUARD_BYTES = 64;
const GUARD = 0xe7;
/** How long the playing server waits for a client that says something else than the recorded one did. */
const PATIENCE_MS = 5;
const UINT32 = 2 ** 32;

/** Which of our clients a session was recorded with; undefined where it was another's. */
export function ownClientOf(session: Session): OwnClient | undefined {
  return OWN_CLIENTS.find(({ name }) => session.name.endsWith(name));
}

/** Buffers with guards around them. */
class GuardedBuffers {
  readonly #buffers: Buffer[] = [];

  allocate(lengthBytes: number): Buffer {
    const buffer = Buffer.alloc(lengthBytes + 2 * GUARD_BYTES, GUARD);
    this.#buffers.push(buffer);
    return buffer.subarray(GUARD_BYTES, GUARD_BYTES + lengthBytes);
  }

  assertIntact(): void {
    for (const buffer of this.#buffers) {
      const isIntact =
        buffer.subarray(0, GUARD_BYTES).every((byte) => byte === GUARD) &&
        buffer.subarray(buffer.length - GUARD_BYTES).every((byte) => byte === GUARD);
      assert(isIntact, `Bytes were written beside a target of ${buffer.length - 2 * GUARD_BYTES} bytes`);
    }
  }
}

/** Where the requests of a recorded client begin: behind the last option's data. */
function requestsOf(session: Session): readonly Asked[] {
  const stream = bytesFrom(session, 'client');
  const mode = modeOf(session);
  const magic = Buffer.from(mode === 'extended' ? '21e41c71' : '25609513', 'hex');
  const at = stream.indexOf(magic);
  return at < 0 ? [] : readRequests(stream.subarray(at), mode);
}

function modeOf(session: Session): 'simple' | 'structured' | 'extended' {
  const magic = Buffer.alloc(4);
  magic.writeUInt32BE(EXTENDED_CHUNK_MAGIC, 0);
  return bytesFrom(session, 'server').includes(magic) ? 'extended' : 'simple';
}

/** Runs a server's stream through handshake and reply reader, without a socket. */
export function fuzzReader(random: SeededRandom, session: Session, stream: Buffer): void {
  const own = ownClientOf(session);
  assert(own !== undefined, `Session ${session.name} is not our client's`);
  const { structuredReplies = true, extendedHeaders = true, contexts = [] } = own.options;
  const goal = { kind: 'go', exportName: SESSION_EXPORT.name } as const;
  const handshake = new ClientHandshake(goal, { structuredReplies, extendedHeaders, contexts });
  const chunks = cutIntoChunks(random, stream);
  let decision: ClientDecision = { kind: 'continue' };
  let outputBytes = 0;
  while (decision.kind === 'continue') {
    const chunk = chunks.shift();
    if (chunk === undefined) return;
    const step = handshake.receive(chunk);
    outputBytes += step.output.length;
    decision = step.decision;
  }
  assert(outputBytes < 65_536, `A handshake made the client send ${outputBytes} bytes`);
  if (decision.kind !== 'export') return;
  const buffers = new GuardedBuffers();
  const pending = new Map<number, Pending>();
  for (const asked of requestsOf(session)) {
    const [high = 0, low = 0] = asked.cookie.split(':').map(Number);
    pending.set(high * UINT32 + low, pendingOf(asked, buffers, [...decision.terms.contexts.keys()]));
  }
  let violationCount = 0;
  const reader = new ReplyReader(decision.terms.replies, {
    find: (cookie) => pending.get(cookie),
    forget: (cookie) => void pending.delete(cookie),
    violate: () => {
      violationCount += 1;
    },
  });
  for (const chunk of [decision.rest, ...chunks]) reader.receive(chunk);
  assert(violationCount <= 1, `${violationCount} violations of one session were reported`);
  buffers.assertIntact();
}

/** What waits for the reply to a recorded request; it must hear of it once. */
function pendingOf(asked: Asked, buffers: GuardedBuffers, allIds: readonly number[]): Pending {
  const { type, offsetBytes, lengthBytes, payload } = asked;
  const ids = payload.length > 0 ? decodeStatusFilter(payload)?.contextIds : allIds;
  let isSettled = false;
  const settle = (): void => {
    assert(!isSettled, 'A request was answered twice');
    isSettled = true;
  };
  return {
    name: `command ${type}`,
    offsetBytes,
    target: type === COMMAND.read ? buffers.allocate(lengthBytes) : undefined,
    contextIds: type === COMMAND.blockStatus ? new Set(ids) : undefined,
    resolve: settle,
    refuse: settle,
  };
}

/** A server that plays recorded turns, whatever it hears. */
export class PlayingServer {
  readonly #path: string;
  readonly #listener: Server;
  #play: (socket: Socket) => void = (socket) => socket.destroy();

  private constructor(path: string) {
    this.#path = path;
    this.#listener = createServer({ allowHalfOpen: true }, (socket) => this.#play(socket));
  }

  static async open(directory: string): Promise<PlayingServer> {
    const server = new PlayingServer(join(directory, 'playing.sock'));
    await new Promise<void>((resolve) => server.#listener.listen(server.#path, resolve));
    return server;
  }

  async close(): Promise<void> {
    await new Promise<void>((resolve) => this.#listener.close(() => resolve()));
  }

  /**
   * Connects our client to the stream, which is sent in the turns of the session it was made from.
   *
   * @returns how many of the client's requests succeeded.
   */
  async play(random: SeededRandom, session: Session, stream: Buffer): Promise<number> {
    const own = ownClientOf(session);
    assert(own !== undefined, `Session ${session.name} is not our client's`);
    const turns = turnsOf(session.segments, stream);
    const isAbrupt = random.chance(1 / 4);
    this.#play = (socket) => void playTurns(socket, turns, isAbrupt);
    const buffers = new GuardedBuffers();
    let succeededCount = 0;
    const converse = async (): Promise<void> => {
      const transport = { kind: 'unix', path: this.#path } as const;
      const client = await NbdClient.connect({ transport, exportName: SESSION_EXPORT.name }, own.options);
      const asked = playScript(client, (lengthBytes) => buffers.allocate(lengthBytes));
      for (const settled of await Promise.allSettled(asked)) {
        if (settled.status === 'fulfilled') succeededCount += 1;
        else if (!(settled.reason instanceof NbdClientError)) throw settled.reason;
      }
      assert(client.inFlightCount === 0, `${client.inFlightCount} settled requests are still in flight`);
      await client.disconnect();
    };
    await withinTime(
      'A client whose server has gone',
      converse().catch((error: unknown) => {
        if (!(error instanceof NbdClientError)) throw error;
      }),
    );
    buffers.assertIntact();
    return succeededCount;
  }
}

interface Turn {
  /** How much the recorded client had sent when the server said this. */
  readonly afterBytes: number;
  readonly bytes: Buffer;
}

/** Cuts a server's stream where the recorded one was cut; the last turn has what is left. */
function turnsOf(segments: readonly Segment[], stream: Buffer): readonly Turn[] {
  const turns: Turn[] = [];
  let [afterBytes, at] = [0, 0];
  for (const { from, bytes } of segments) {
    if (from === 'client') afterBytes += bytes.length;
    else {
      turns.push({ afterBytes, bytes: stream.subarray(at, at + bytes.length) });
      at += bytes.length;
    }
  }
  turns.push({ afterBytes, bytes: stream.subarray(at) });
  return turns;
}

async function playTurns(socket: Socket, turns: readonly Turn[], isAbrupt: boolean): Promise<void> {
  let heardBytes = 0;
  let wake = (): void => {};
  socket.on('data', (bytes: Buffer) => {
    heardBytes += bytes.length;
    wake();
  });
  socket.on('error', () => {});
  socket.on('close', () => wake());
  for (const { afterBytes, bytes } of turns) {
    if (heardBytes < afterBytes && !socket.destroyed) {
      const heard = new Promise<void>((resolve) => {
        wake = () => {
          if (heardBytes >= afterBytes || socket.destroyed) resolve();
        };
      });
      const impatience = new AbortController();
      await Promise.race([
        heard,
        sleep(PATIENCE_MS, undefined, { signal: impatience.signal }).catch(() => {}),
      ]);
      impatience.abort();
    }
    if (!socket.destroyed) socket.write(bytes);
  }
  if (isAbrupt) socket.destroy();
  else socket.end();
}
