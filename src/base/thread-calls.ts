/**
 * Calls into a worker thread and their answers: each call has a number, and its answer carries it. A thread that
 * dies fails every call that waits and every later one.
 *
 * The thread's side is `answerCalls`. Both ends are of one version, so nothing that arrives is checked.
 */

import { once } from 'node:events';
import type { MessagePort, TransferListItem, Worker } from 'node:worker_threads';
import { assert } from './assert.ts';
import { deferred, type Deferred } from './deferred.ts';
import { errorFromWire, toWireError, type WireError } from './wire-error.ts';

/** The number that the thread's first message answers, which says that it is ready or why not. */
const READY = 0;

type Answer = { readonly id: number } & ({ readonly gives: unknown } | { readonly error: WireError });

export class ThreadCalls {
  /** Settles when the thread is ready to be called. */
  readonly ready: Promise<unknown>;
  readonly #worker: Worker;
  readonly #waiting = new Map<number, Deferred<unknown>>();
  #lastId = READY;
  #death: Error | undefined;

  /** @param name of the thread, for the error when it dies: `A lane of the backup`. */
  constructor(worker: Worker, name: string) {
    this.#worker = worker;
    worker.on('message', (answer: Answer) => this.#settle(answer));
    worker.on('error', (error) => this.#die(error));
    worker.on('exit', () => this.#die(new Error(`${name} has ended before its time`)));
    this.ready = this.#expect(READY);
    this.ready.catch(() => undefined);
  }

  /** Calls that are not answered yet. */
  get waitingCount(): number {
    return this.#waiting.size;
  }

  get isDead(): boolean {
    return this.#death !== undefined;
  }

  /** Sends a call; its answer is whatever the thread gives for it. */
  call(call: unknown, transfer: readonly TransferListItem[] = []): Promise<unknown> {
    if (this.#death !== undefined) return Promise.reject(this.#death);
    this.#lastId += 1;
    const answer = this.#expect(this.#lastId);
    this.#worker.postMessage({ id: this.#lastId, call }, transfer);
    return answer;
  }

  /** Finishes when the thread has ended, which it must be about to do. */
  async ended(): Promise<void> {
    if (this.#death === undefined) await once(this.#worker, 'exit');
  }

  #expect(id: number): Promise<unknown> {
    const waiting = deferred<unknown>();
    this.#waiting.set(id, waiting);
    return waiting.promise;
  }

  #settle(answer: Answer): void {
    const waiting = this.#waiting.get(answer.id);
    assert(waiting !== undefined, `Answer ${answer.id} of a thread was not asked for`);
    this.#waiting.delete(answer.id);
    if ('error' in answer) waiting.reject(errorFromWire(answer.error));
    else waiting.resolve(answer.gives);
  }

  #die(error: Error): void {
    this.#death ??= error;
    for (const waiting of this.#waiting.values()) waiting.reject(error);
    this.#waiting.clear();
  }
}

/** What the thread does with a call, and what of the answer is handed over instead of copied. */
export type Perform<Call> = (call: Call) => Promise<{
  readonly gives: unknown;
  readonly transfer?: readonly TransferListItem[];
  readonly isLast?: boolean;
}>;

/**
 * The thread's side: begins, says whether that worked, then answers calls until one says that it is the last, or
 * the beginning failed. Calls are begun in their order; each is answered when it has finished.
 */
export async function answerCalls<Call>(
  port: MessagePort,
  begin: () => Promise<Perform<Call>>,
): Promise<void> {
  const send = (answer: Answer, transfer: readonly TransferListItem[] = []): void =>
    port.postMessage(answer, transfer);
  let perform: Perform<Call>;
  try {
    perform = await begin();
  } catch (error) {
    send({ id: READY, error: toWireError(error) });
    return;
  }
  await new Promise<void>((resolve) => {
    port.on('message', ({ id, call }: { readonly id: number; readonly call: Call }) => {
      perform(call).then(
        ({ gives, transfer, isLast }) => {
          send({ id, gives }, transfer);
          if (isLast === true) resolve();
        },
        (error: unknown) => send({ id, error: toWireError(error) }),
      );
    });
    send({ id: READY, gives: undefined });
  });
  port.close();
}
