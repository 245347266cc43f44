/**
 * The sessions that run on a volume, and their cancellation.
 *
 * Several may, one to each store; a second to the same store is refused. A session belongs to the process that owns
 * the volume, not to the connection that asked for it: a client that goes away ends nothing (DESIGN section 6).
 */

import { type Clock, CorruptionError, LIMITS, makeUlid } from '../base/index.ts';
import type { SessionStep } from '../media/index.ts';
import { DaemonError } from './errors.ts';

/** A running session as `status` shows it. */
export interface SessionStatus {
  readonly session: string;
  readonly kind: string;
  /** The store that it is to, a path without links; null for a session to none. */
  readonly store: string | null;
  readonly startedMs: number;
  /** The last progress that the session told of. */
  readonly progress: unknown;
  /** Its states so far and when it came to them, oldest first; the last is the present one. */
  readonly steps: readonly SessionStep[];
  readonly cancelling: boolean;
}

export interface SessionHandle {
  readonly id: string;
  /** Fires when somebody cancels the session. */
  readonly signal: AbortSignal;
  /** Keeps the last progress for `status`. */
  note(progress: unknown): void;
  /** Keeps a step of its states, for `status` and the log. */
  noteStep(step: SessionStep): void;
  /** The steps kept. */
  readonly steps: readonly SessionStep[];
  readonly startedMs: number;
}

interface Running {
  readonly handle: SessionHandle;
  readonly kind: string;
  readonly store: string | undefined;
  readonly abort: AbortController;
  readonly ended: Promise<unknown>;
  progress: unknown;
}

/** The sessions of one volume. */
export class SessionRegistry {
  readonly #volumeName: string;
  readonly #clock: Clock;
  readonly #running = new Map<string, Running>();
  #stopping = false;

  constructor(options: { readonly volumeName: string; readonly clock: Clock }) {
    this.#volumeName = options.volumeName;
    this.#clock = options.clock;
  }

  /**
   * Runs `work` as a session of the volume's. Cancelling makes the signal fire; what `work` then throws becomes
   * `cancelled`, whatever the room that was interrupted calls it.
   *
   * @param store the store that it is to, a path without links: one session runs for each, and one to none.
   * @throws {DaemonError} session-running, stopping, cancelled; whatever else `work` throws.
   */
  async run<T>(kind: string, work: (session: SessionHandle) => Promise<T>, store?: string): Promise<T> {
    this.#admit(store);
    const id = makeUlid(this.#clock.now());
    const abort = new AbortController();
    const steps: SessionStep[] = [];
    const handle: SessionHandle = {
      id,
      startedMs: this.#clock.now(),
      steps,
      noteStep: (step) => {
        steps.push(step);
        if (steps.length > LIMITS.mediaStepCountMax) steps.shift();
      },
      signal: abort.signal,
      note: (progress) => {
        const running = this.#running.get(id);
        if (running !== undefined) running.progress = progress;
      },
    };
    const result = Promise.resolve().then(() => {
      abort.signal.throwIfAborted();
      return work(handle);
    });
    this.#running.set(id, {
      handle,
      kind,
      store,
      abort,
      ended: result.then(
        () => undefined,
        () => undefined,
      ),
      progress: undefined,
    });
    try {
      return await result;
    } catch (error) {
      // Damage is never hidden behind a cancellation that came at the same time.
      if (!abort.signal.aborted || error instanceof CorruptionError) throw error;
      const message = `Session ${id} of volume ${this.#volumeName} was cancelled`;
      throw new DaemonError(
        'cancelled',
        message,
        { volume: this.#volumeName, session: id },
        { cause: error },
      );
    } finally {
      this.#running.delete(id);
    }
  }

  list(): readonly SessionStatus[] {
    return [...this.#running.values()].map((running) => ({
      session: running.handle.id,
      kind: running.kind,
      store: running.store ?? null,
      startedMs: running.handle.startedMs,
      progress: running.progress ?? null,
      steps: running.handle.steps,
      cancelling: running.abort.signal.aborted,
    }));
  }

  /**
   * Cancels the named session, or the only one that runs, and waits until it has ended.
   *
   * @returns the session's id.
   * @throws {DaemonError} unknown-session when nothing runs under that id, or nothing runs; several-sessions.
   */
  async cancel(id?: string): Promise<string> {
    if (id === undefined && this.#running.size > 1) {
      throw severalSessions(this.#volumeName, [...this.#running.keys()]);
    }
    const running = id === undefined ? this.#running.values().next().value : this.#running.get(id);
    if (running === undefined) {
      const what = id === undefined ? 'runs no session' : `runs no session ${id}`;
      const message = `Volume ${this.#volumeName} ${what}; see status for those that run`;
      throw new DaemonError('unknown-session', message, { volume: this.#volumeName, session: id });
    }
    running.abort.abort();
    await running.ended;
    return running.handle.id;
  }

  /** Cancels everything, waits for it to end, and admits nothing more. */
  async stop(): Promise<void> {
    this.#stopping = true;
    for (const running of this.#running.values()) running.abort.abort();
    await Promise.all([...this.#running.values()].map((running) => running.ended));
  }

  #admit(store: string | undefined): void {
    if (this.#stopping) {
      throw new DaemonError(
        'stopping',
        `The server of volume ${this.#volumeName} is stopping and starts no session`,
        {
          volume: this.#volumeName,
        },
      );
    }
    const other = [...this.#running.values()].find((running) => running.store === store);
    if (other === undefined) return;
    const details = { volume: this.#volumeName, session: other.handle.id, kind: other.kind };
    throw new DaemonError(
      'session-running',
      `Volume ${this.#volumeName} already runs ${other.kind} session ${other.handle.id}${store === undefined ? '' : ` to ${store}`}; wait for it or cancel it`,
      details,
    );
  }
}

/** Nobody said which of several sessions is meant. */
export function severalSessions(volume: string, sessions: readonly string[]): DaemonError {
  const message = `Volume ${volume} runs ${sessions.length} sessions, wanted the id of one of them: ${sessions.join(', ')}`;
  return new DaemonError('several-sessions', message, { volume, sessions });
}
