/**
 * What one session still has to get out of intermediate containers, its own or those of others: each entry from its
 * arrival to its acknowledgement. Entries come out newest first while their content is in memory.
 *
 * Content that several sessions need lies in one slot; each has an entry for it, takes it and acknowledges it for
 * itself, and the slot is free when the last has. An entry that was taken and not acknowledged can be put back, to
 * be taken again: the receiver was lost and has come back.
 */

import { assert, type MaybePromise } from '../base/index.ts';

interface SharedContentOptions {
  readonly track: number;
  /** Whether the content comes back without waiting. */
  readonly isMemory: boolean;
  readonly holderCount: number;
  readonly read: () => MaybePromise<Buffer>;
  readonly free: () => void;
}

/** One track's old content in a slot, with those who need it. */
export class SharedContent {
  readonly track: number;
  readonly isMemory: boolean;
  readonly #options: SharedContentOptions;
  #holderCount: number;

  constructor(options: SharedContentOptions) {
    this.track = options.track;
    this.isMemory = options.isMemory;
    this.#options = options;
    this.#holderCount = options.holderCount;
  }

  /** The buffer may be that of the others too: it is for reading only. */
  read(): MaybePromise<Buffer> {
    return this.#options.read();
  }

  /** One of the holders needs it no more. */
  release(): void {
    assert(this.#holderCount > 0, `The content of track ${this.track} was released once too often`);
    this.#holderCount -= 1;
    if (this.#holderCount === 0) this.#options.free();
  }
}

/** Diverted content, as it is taken. */
export interface ContainerEntry {
  /** Number of arrival in this queue, counting from 1. */
  readonly id: number;
  readonly track: number;
}

interface QueuedEntry extends ContainerEntry {
  readonly content: SharedContent;
  isTaken: boolean;
}

export class DrainQueue {
  readonly #entries = new Map<number, QueuedEntry>();
  /** Entries nobody has taken, oldest first, by where their content lies. */
  readonly #inMemory: QueuedEntry[] = [];
  readonly #onDevices: QueuedEntry[] = [];
  #lastId = 0;
  #entryCountMax = 0;

  /** Entries that are not acknowledged. */
  get entryCount(): number {
    return this.#entries.size;
  }

  /** Entries that `take` would hand out. */
  get untakenCount(): number {
    return this.#inMemory.length + this.#onDevices.length;
  }

  /** The most entries there ever were at once, for `status` and the closing report. */
  get entryCountMax(): number {
    return this.#entryCountMax;
  }

  /** Called by the container that has the content. */
  add(content: SharedContent): void {
    this.#lastId += 1;
    const entry: QueuedEntry = { id: this.#lastId, track: content.track, content, isTaken: false };
    this.#entries.set(entry.id, entry);
    this.#untakenOf(entry).push(entry);
    this.#entryCountMax = Math.max(this.#entryCountMax, this.#entries.size);
  }

  /**
   * The newest entries that nobody has taken, memory before devices, at most `countMax`, marked as taken.
   * They keep their slots until `acknowledge`.
   */
  take(countMax: number): ContainerEntry[] {
    const taken: ContainerEntry[] = [];
    while (taken.length < countMax) {
      const entry = this.#inMemory.pop() ?? this.#onDevices.pop();
      if (entry === undefined) break;
      entry.isTaken = true;
      taken.push({ id: entry.id, track: entry.track });
    }
    return taken;
  }

  /**
   * The content of an entry, for reading only and until the entry is acknowledged; undefined where it was already, or
   * the queue was dropped.
   */
  content(id: number): MaybePromise<Buffer> | undefined {
    return this.#entries.get(id)?.content.read();
  }

  /**
   * The store has the entry's content, and this queue needs it no more. Without effect on an entry that is not there:
   * one that was put back and taken twice is acknowledged twice.
   */
  acknowledge(id: number): void {
    const entry = this.#entries.get(id);
    if (entry === undefined) return;
    this.#entries.delete(id);
    if (!entry.isTaken) {
      // Put back after it was taken: the store has it all the same.
      const untaken = this.#untakenOf(entry);
      untaken.splice(untaken.indexOf(entry), 1);
    }
    entry.content.release();
  }

  /** What was taken and not acknowledged is to be taken again. */
  putBack(): void {
    for (const untaken of [this.#inMemory, this.#onDevices]) untaken.length = 0;
    // In order of arrival.
    for (const entry of this.#entries.values()) {
      entry.isTaken = false;
      this.#untakenOf(entry).push(entry);
    }
  }

  /** Nothing in it is needed any more. */
  drop(): void {
    const entries = [...this.#entries.values()];
    this.#entries.clear();
    for (const untaken of [this.#inMemory, this.#onDevices]) untaken.length = 0;
    for (const { content } of entries) content.release();
  }

  #untakenOf({ content }: QueuedEntry): QueuedEntry[] {
    return content.isMemory ? this.#inMemory : this.#onDevices;
  }
}
