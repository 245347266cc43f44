/** The child's end of a session: each call goes through the channel to the serving process and back. */

import { assert, CorruptionError, deferred, type Deferred, type WireError } from '../base/index.ts';
import type { TrackRun } from '../tracks/index.ts';
import { TrackSet } from '../tracks/index.ts';
import type { DivertedTrack, SessionPlan } from '../volume/index.ts';
import { BackupError } from './errors.ts';
import {
  type CallName,
  type Calls,
  type ChildMessage,
  isChildMessage,
  type ReplyMessage,
} from './messages.ts';
import type { BeginRequest, HomeReader, SessionSource, SourceVolume } from './source.ts';

export interface RemoteSourceOptions {
  readonly volume: SourceVolume;
  readonly send: (message: ChildMessage) => void;
  /** The home where this process can read it; otherwise every byte comes through the channel. */
  readonly home: (HomeReader & { readonly sizeBytes: number }) | undefined;
}

export class RemoteSource implements SessionSource {
  readonly volume: SourceVolume;
  readonly #home: RemoteSourceOptions['home'];
  readonly #channel: HomeReader;
  /** The home that was opened has all of the volume. */
  #isWhole = false;
  readonly #send: (message: ChildMessage) => void;
  readonly #waiting = new Map<number, Deferred<unknown>>();
  #lastId = 0;

  constructor(options: RemoteSourceOptions) {
    this.volume = options.volume;
    this.#send = options.send;
    this.#home = options.home;
    this.#channel = {
      read: async (target, offsetBytes) => {
        const bytes = await this.#call('read', { offsetBytes, lengthBytes: target.length });
        assert(bytes.length === target.length, `Read of ${target.length} bytes gave ${bytes.length}`);
        target.set(bytes);
      },
      extents: (offsetBytes, lengthBytes) => this.#call('extents', { offsetBytes, lengthBytes }),
    };
  }

  get home(): HomeReader {
    return this.#isWhole && this.#home !== undefined ? this.#home : this.#channel;
  }

  get isHomeWhole(): boolean {
    return this.#isWhole;
  }

  /** A reply has arrived for one of the calls. */
  settle(reply: ReplyMessage): void {
    const waiting = this.#waiting.get(reply.id);
    assert(waiting !== undefined, `Reply ${reply.id} was not asked for`);
    this.#waiting.delete(reply.id);
    if ('error' in reply) waiting.reject(fromWireError(reply.error, this.volume.name));
    else waiting.resolve(reply.gives);
  }

  async begin(request: BeginRequest): Promise<SessionPlan> {
    const plan = await this.#call('begin', request);
    // The volume may have grown after this process opened its home and before the freeze.
    this.#isWhole = this.#home !== undefined && this.#home.sizeBytes >= plan.sizeBytes;
    const { tracks, deltas, ...rest } = plan;
    return {
      ...rest,
      tracks: tracksOf(tracks),
      ...(deltas === undefined ? {} : { deltas: { ...deltas, tracks: tracksOf(deltas.tracks) } }),
    };
  }

  confirm(runs: readonly TrackRun[]): Promise<Calls['confirm']['gives']> {
    return this.#call('confirm', { runs });
  }

  async take(countMax: number): Promise<DivertedTrack[]> {
    const taken = await this.#call('take', { countMax });
    return taken.map(({ id, track, content }) => ({ id, track, content: content && asBuffer(content) }));
  }

  async acknowledge(ids: readonly number[]): Promise<void> {
    await this.#call('acknowledge', { ids });
  }

  async mayComplete(): Promise<void> {
    await this.#call('mayComplete', undefined);
  }

  async complete(set: string): Promise<void> {
    await this.#call('complete', { set });
  }

  async covered(): Promise<void> {
    await this.#call('covered', undefined);
  }

  async logsDamaged(reason: string): Promise<void> {
    await this.#call('logsDamaged', { reason });
  }

  #call<Name extends CallName>(name: Name, takes: Calls[Name]['takes']): Promise<Calls[Name]['gives']>;
  #call(name: CallName, takes: unknown): Promise<unknown> {
    this.#lastId += 1;
    const waiting = deferred<unknown>();
    this.#waiting.set(this.#lastId, waiting);
    // The overload ties name and argument together; the union of messages cannot express that.
    const message: unknown = { kind: 'call', id: this.#lastId, name, takes };
    assert(isChildMessage(message), 'A call is a message');
    this.#send(message);
    return waiting.promise;
  }
}

/** The error that was sent, as an error of this process. */
export function fromWireError(error: WireError, volume: string): Error {
  if (error.corruption !== undefined) return new CorruptionError(error.message, error.corruption);
  return new BackupError('worker-failed', error.message, { volume, workerCode: error.code });
}

function tracksOf(bytes: Uint8Array): TrackSet {
  return TrackSet.deserialize(Buffer.from(bytes), 'session plan');
}

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
