/**
 * Reads media in a child process, for the fill of a volume (`medium-feed-child.ts`). What the child hands over was checked
 * there. Batches are asked for one ahead, so that it unpacks while the volume writes.
 */

import { type ChildProcess, fork } from 'node:child_process';
import { deferred, type Deferred, errorFromWire } from '../base/index.ts';
import type { TrackSet } from '../tracks/index.ts';
import { DaemonError } from './errors.ts';
import {
  type FedTrack,
  type FeedChildMessage,
  type FeedParentMessage,
  isFeedChildMessage,
  type MediaPlaces,
} from './medium-feed-messages.ts';
import type { SetFacts } from './set-facts.ts';

export type { FedTrack, MediaPlaces } from './medium-feed-messages.ts';

/** What is kept of the child's error output, for the message when it dies. */
const STDERR_BYTES_MAX = 4096;

export interface MediumFeedRequest {
  readonly media: MediaPlaces;
  /** A set id or unique prefix, `latest` or `latest:<volume id or name>`. */
  readonly set: string;
  /** The module that the child runs; it calls `runMediumFeed`. */
  readonly program: string;
  readonly warn: (sentence: string) => void;
}

export class MediumFeed {
  /** What is on the media. */
  readonly set: SetFacts;
  readonly #child: FeedChild;

  private constructor(child: FeedChild, set: SetFacts) {
    this.#child = child;
    this.set = set;
  }

  /**
   * Opens the first medium and finds the set.
   *
   * @throws with the code that the error has in the child: {MediaError} and {StoreError}; {DaemonError} `reader-died`.
   */
  static async open(request: MediumFeedRequest): Promise<MediumFeed> {
    const child = new FeedChild(request);
    try {
      child.send({ kind: 'start', media: request.media, set: request.set });
      const message = await child.next();
      if (message.kind === 'begun') return new MediumFeed(child, message.set);
      throw child.unexpected(message);
    } catch (error) {
      await child.end();
      throw error;
    }
  }

  /**
   * Reads the media to their end, or until all of these tracks were handed out. To be called once.
   *
   * @throws {CorruptionError} where the media do not have all of them; those that they have came before.
   */
  async *read(wanted: TrackSet): AsyncGenerator<readonly FedTrack[], void, undefined> {
    this.#child.send({ kind: 'wanted', tracks: wanted.serialize() });
    this.#child.send({ kind: 'more' });
    for (;;) {
      const message = await this.#child.next();
      if (message.kind !== 'batch') throw this.#child.unexpected(message);
      if (message.tracks.length === 0) return;
      this.#child.send({ kind: 'more' });
      yield message.tracks;
    }
  }

  /** Ends the child, whatever it does. */
  close(): Promise<void> {
    return this.#child.end();
  }
}

/** The child with what it has said and nobody has heard yet. */
class FeedChild {
  readonly #process: ChildProcess;
  readonly #exited = deferred();
  readonly #messages: FeedChildMessage[] = [];
  readonly #request: MediumFeedRequest;
  #waiting: Deferred<FeedChildMessage> | undefined;
  #death: DaemonError | undefined;
  #stderr = '';

  constructor(request: MediumFeedRequest) {
    this.#request = request;
    const stdio = ['ignore', 'ignore', 'pipe', 'ipc'] as const;
    this.#process = fork(request.program, [], { serialization: 'advanced', stdio: [...stdio] });
    this.#process.on('message', (message: unknown) => {
      if (isFeedChildMessage(message)) this.#receive(message);
    });
    this.#process.stderr?.setEncoding('utf8').on('data', (text: string) => {
      this.#stderr = (this.#stderr + text).slice(-STDERR_BYTES_MAX);
    });
    this.#process.on('error', (error) => this.#die(error.message, null, null));
    // `close` comes after the last message and the last of stderr.
    this.#process.on('close', (exitCode, signal) => {
      const how = signal === null ? `exit status ${exitCode}` : `signal ${signal}`;
      this.#die(how, exitCode, signal);
      this.#exited.resolve();
    });
  }

  send(message: FeedParentMessage): void {
    if (this.#process.connected) this.#process.send(message, () => undefined);
  }

  /** What it says next; a warning is passed on. @throws its failure. */
  async next(): Promise<FeedChildMessage> {
    for (;;) {
      const message = this.#messages.shift() ?? (await this.#wait());
      if (message.kind === 'failed') throw errorFromWire(message.error);
      if (message.kind !== 'warning') return message;
      this.#request.warn(message.sentence);
    }
  }

  unexpected(message: FeedChildMessage): Error {
    return new Error(`The process that reads media said ${message.kind} out of turn`);
  }

  async end(): Promise<void> {
    this.#process.kill('SIGKILL');
    await this.#exited.promise;
  }

  #wait(): Promise<FeedChildMessage> {
    if (this.#death !== undefined) return Promise.reject(this.#death);
    this.#waiting = deferred();
    return this.#waiting.promise;
  }

  #receive(message: FeedChildMessage): void {
    if (this.#waiting === undefined) this.#messages.push(message);
    else this.#waiting.resolve(message);
    this.#waiting = undefined;
  }

  #die(how: string, exitCode: number | null, signal: string | null): void {
    const last = this.#stderr.trim().split('\n').at(-1) ?? '';
    const { media, set } = this.#request;
    const message = `The process that reads media died (${how})${last === '' ? '' : `: ${last}`}`;
    this.#death ??= new DaemonError('reader-died', message, {
      store: media.places.join(', '),
      set,
      exitCode,
      signal,
    });
    this.#waiting?.reject(this.#death);
    this.#waiting = undefined;
  }
}
