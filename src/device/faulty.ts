/**
 * A device that fails as told: a layer for tests.
 *
 * Wraps another device (usually one in memory) and can
 *
 * - record every operation in the order of arrival (`operations`);
 * - hold chosen operations at a gate that the test opens and closes (`hold`);
 * - delay them by a promise of the test's (`delay`), so that no test sleeps;
 * - fail them (`fail`), a flush once for example;
 * - lose power (`powerCut`), which drops, keeps or tears at 512 bytes each write that no flush made durable.
 *
 * The order for each operation: recorded, delayed, held, failed, done below. A failed write has changed nothing.
 * A flush covers what had finished when it was called, however long it is held.
 *
 * All calls are asynchronous, and nobody else may write to the device below meanwhile. A closed device below is not looked after: close this one instead.
 */

import { assert, deferred, type Deferred, LIMITS, type SeededRandom } from '../base/index.ts';
import {
  assertRange,
  type BlockDevice,
  type DeviceCapabilities,
  type DeviceExtent,
  type WriteOptions,
  type ZeroOptions,
} from './block-device.ts';
import { DeviceError } from './errors.ts';
import { type CachedWrite, VolatileCache } from './volatile-cache.ts';

export type FaultyKind = 'read' | 'write' | 'writeZeroes' | 'trim' | 'flush' | 'extents' | 'extend';

export interface FaultyOperation {
  readonly kind: FaultyKind;
  /** 0 and the whole size for a flush; for an extension 0 and the wanted size. */
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  readonly fua: boolean;
}

/** Which operations a rule is about: all conditions that are given must hold. */
export interface FaultyMatch {
  readonly kind?: FaultyKind | readonly FaultyKind[];
  /** Operations that overlap this range. */
  readonly range?: { readonly offsetBytes: number; readonly lengthBytes: number };
  /** Only the n-th of those from now on that match otherwise, counted from 1. */
  readonly nth?: number;
}

/** What a test holds of a rule; `remove` ends it. */
export interface FaultyRule {
  remove(): void;
}

/** A gate before the device below; it starts closed. */
export interface FaultyGate extends FaultyRule {
  /** Operations that wait at the gate now. */
  readonly waitingCount: number;
  /** Resolves as soon as so many operations wait. */
  arrived(count: number): Promise<void>;
  /** Lets everything through that waits, and what comes until it is closed again. */
  open(): void;
  /** Lets through the `count` that came first and stays closed. */
  release(count: number): void;
  close(): void;
}

interface Rule {
  readonly match: FaultyMatch;
  seen: number;
  readonly apply: (operation: FaultyOperation) => Promise<void> | void;
}

type Stage = 'delay' | 'hold' | 'fail';
const STAGES: readonly Stage[] = ['delay', 'hold', 'fail'];

export class FaultyDevice implements BlockDevice {
  readonly blockSizeBytes: number;
  readonly capabilities: DeviceCapabilities;
  readonly description: string;
  readonly #next: BlockDevice;
  readonly #operations: FaultyOperation[] = [];
  readonly #rules: Readonly<Record<Stage, Set<Rule>>> = {
    delay: new Set(),
    hold: new Set(),
    fail: new Set(),
  };
  #cache = new VolatileCache();
  readonly #inFlight = new Set<CachedWrite>();
  /** Calls that have reached the device below. */
  readonly #below = new Set<Promise<unknown>>();
  /** Rejected by a power cut; everything under way races with it. */
  #power: Deferred<never> = powered();
  #isOff = false;

  constructor(next: BlockDevice) {
    this.#next = next;
    this.blockSizeBytes = next.blockSizeBytes;
    this.capabilities = next.capabilities;
    this.description = `faulty ${next.description}`;
  }

  get sizeBytes(): number {
    return this.#next.sizeBytes;
  }

  /** Everything that was asked for, in order of arrival, whether it succeeded or not. */
  get operations(): readonly FaultyOperation[] {
    return this.#operations;
  }

  /** 512-byte sectors that a power cut now could change. */
  get unsyncedSectorCount(): number {
    return this.#cache.unsyncedSectorCount;
  }

  forgetOperations(): void {
    this.#operations.length = 0;
  }

  /** Makes matching operations fail. Without `nth` all of them do, until the rule is removed. */
  fail(match: FaultyMatch, error: Error = injected()): FaultyRule {
    return this.#addRule('fail', match, () => {
      throw error;
    });
  }

  /** Makes matching operations wait for a promise of the test's, such as a timer's. */
  delay(match: FaultyMatch, wait: (operation: FaultyOperation) => Promise<void>): FaultyRule {
    return this.#addRule('delay', match, wait);
  }

  /** Closes a gate for matching operations. */
  hold(match: FaultyMatch): FaultyGate {
    const gate = new Gate(() => rule.remove());
    const rule = this.#addRule('hold', match, () => gate.pass());
    return gate;
  }

  #addRule(stage: Stage, match: FaultyMatch, apply: Rule['apply']): FaultyRule {
    const rule: Rule = { match, seen: 0, apply };
    this.#rules[stage].add(rule);
    return { remove: () => this.#rules[stage].delete(rule) };
  }

  /**
   * Cuts the power: what is under way fails, and the device below holds something that the disk could hold now.
   * Afterwards the device works again and everything in it is durable.
   */
  async powerCut(random: SeededRandom): Promise<void> {
    const inFlight = [...this.#inFlight];
    const cache = this.#cache;
    this.#cache = new VolatileCache();
    this.#inFlight.clear();
    this.#power.reject(powerCutError());
    this.#power = powered();
    // What has reached the device below cannot be stopped; it must not come after what is decided here.
    await Promise.allSettled(this.#below);
    this.#below.clear();
    for (const write of inFlight) await this.#learn(cache, write.offsetBytes, write.content.length);
    for (const [sector, content] of cache.cut(random, inFlight)) await this.#restore(sector, content);
    await this.#next.flush();
  }

  /** Makes every later call fail, for a device whose user outlives the power cut. The device below is untouched. */
  switchOff(): void {
    this.#isOff = true;
    this.#power.reject(powerCutError());
  }

  async read(target: Buffer, offsetBytes: number): Promise<void> {
    assertRange(this, offsetBytes, target.length);
    await this.#perform({ kind: 'read', offsetBytes, lengthBytes: target.length, fua: false }, () =>
      this.#next.read(target, offsetBytes),
    );
  }

  async write(source: Buffer, offsetBytes: number, options?: WriteOptions): Promise<void> {
    await this.#change('write', offsetBytes, Buffer.from(source), options, () =>
      this.#next.write(source, offsetBytes, options),
    );
  }

  async writeZeroes(offsetBytes: number, lengthBytes: number, options?: ZeroOptions): Promise<void> {
    await this.#change('writeZeroes', offsetBytes, Buffer.alloc(lengthBytes), options, () =>
      this.#next.writeZeroes(offsetBytes, lengthBytes, options),
    );
  }

  async trim(offsetBytes: number, lengthBytes: number, options?: WriteOptions): Promise<void> {
    await this.#change('trim', offsetBytes, Buffer.alloc(lengthBytes), options, () =>
      this.#next.trim(offsetBytes, lengthBytes, options),
    );
  }

  async flush(): Promise<void> {
    const cache = this.#cache;
    const mark = cache.mark();
    const operation = { kind: 'flush', offsetBytes: 0, lengthBytes: this.sizeBytes, fua: false } as const;
    let isDurable = false;
    try {
      await this.#perform(operation, async () => {
        await this.#next.flush();
        // Here, and not when the caller hears of it: a power cut in between finds it durable.
        isDurable = true;
        cache.flushed(mark, true);
      });
    } catch (error) {
      if (!isDurable) cache.flushed(mark, false);
      throw error;
    }
  }

  async extents(offsetBytes: number, lengthBytes: number): Promise<readonly DeviceExtent[]> {
    return this.#perform({ kind: 'extents', offsetBytes, lengthBytes, fua: false }, () =>
      this.#next.extents(offsetBytes, lengthBytes),
    );
  }

  /** A power cut takes nothing of it back: a device that is too large does no harm. */
  async extend(sizeBytes: number): Promise<void> {
    await this.#perform({ kind: 'extend', offsetBytes: 0, lengthBytes: sizeBytes, fua: false }, () =>
      this.#next.extend?.(sizeBytes),
    );
  }

  /** Is told of no rule: what it changes is another device. */
  async share(target: BlockDevice, offsetBytes: number, lengthBytes: number): Promise<boolean> {
    return (await this.#next.share?.(target, offsetBytes, lengthBytes)) ?? false;
  }

  close(): Promise<void> {
    return this.#next.close();
  }

  /** A write of any kind: kept for a power cut from its start, and volatile or durable from its end. */
  async #change(
    kind: 'write' | 'writeZeroes' | 'trim',
    offsetBytes: number,
    content: Buffer,
    options: WriteOptions | undefined,
    perform: () => Promise<void> | void,
  ): Promise<void> {
    assertRange(this, offsetBytes, content.length);
    assert(!this.capabilities.readOnly, `Write to ${this.description}, which is read-only`);
    const fua = options?.fua === true;
    const write: CachedWrite = { offsetBytes, content };
    const cache = this.#cache;
    this.#inFlight.add(write);
    try {
      await this.#perform({ kind, offsetBytes, lengthBytes: content.length, fua }, async () => {
        await this.#learn(cache, offsetBytes, content.length);
        await perform();
      });
      cache.finish(write, fua);
    } finally {
      this.#inFlight.delete(write);
    }
  }

  async #perform<T>(operation: FaultyOperation, perform: () => Promise<T> | T): Promise<T> {
    if (this.#isOff) throw powerCutError();
    this.#operations.push(operation);
    const power = this.#power;
    const rules = STAGES.flatMap((stage) =>
      [...this.#rules[stage]].filter((rule) => applies(rule, operation)),
    );
    for (const rule of rules) await Promise.race([rule.apply(operation), power.promise]);
    if (this.#power !== power || this.#isOff) throw powerCutError();
    const below = Promise.resolve(perform());
    this.#below.add(below);
    try {
      return await Promise.race([below, power.promise]);
    } finally {
      // A power cut leaves it in the set, to wait for it.
      if (this.#power === power) this.#below.delete(below);
    }
  }

  /** Reads what the sectors of a range hold, unless a write that is not durable has reached them. */
  async #learn(cache: VolatileCache, offsetBytes: number, lengthBytes: number): Promise<void> {
    const block = this.blockSizeBytes;
    const sectorsPerBlock = block / LIMITS.blockSizeBytesMin;
    const blocks = new Set(
      cache.unknownSectors(offsetBytes, lengthBytes).map((sector) => Math.floor(sector / sectorsPerBlock)),
    );
    for (const index of blocks) {
      const content = Buffer.alloc(block);
      await this.#next.read(content, index * block);
      for (let part = 0; part < sectorsPerBlock; part += 1) {
        const start = part * LIMITS.blockSizeBytesMin;
        cache.learn(
          index * sectorsPerBlock + part,
          content.subarray(start, start + LIMITS.blockSizeBytesMin),
        );
      }
    }
  }

  async #restore(sector: number, content: Buffer): Promise<void> {
    const at = sector * LIMITS.blockSizeBytesMin;
    const block = Buffer.alloc(this.blockSizeBytes);
    const start = at - (at % this.blockSizeBytes);
    await this.#next.read(block, start);
    content.copy(block, at - start);
    await this.#next.write(block, start);
  }
}

class Gate implements FaultyGate {
  readonly remove: () => void;
  readonly #waiting: Deferred[] = [];
  readonly #arrivals: { readonly count: number; readonly reached: Deferred }[] = [];
  #isOpen = false;

  constructor(remove: () => void) {
    this.remove = () => {
      remove();
      this.open();
    };
  }

  get waitingCount(): number {
    return this.#waiting.length;
  }

  pass(): Promise<void> {
    if (this.#isOpen) return Promise.resolve();
    const turn = deferred();
    this.#waiting.push(turn);
    for (const { count, reached } of this.#arrivals) if (this.#waiting.length >= count) reached.resolve();
    return turn.promise;
  }

  arrived(count: number): Promise<void> {
    const reached = deferred();
    this.#arrivals.push({ count, reached });
    if (this.#waiting.length >= count) reached.resolve();
    return reached.promise;
  }

  open(): void {
    this.#isOpen = true;
    this.release(this.#waiting.length);
  }

  release(count: number): void {
    for (const turn of this.#waiting.splice(0, count)) turn.resolve();
  }

  close(): void {
    this.#isOpen = false;
  }
}

/** Whether the rule applies; counts the operation where it matches. */
function applies(rule: Rule, operation: FaultyOperation): boolean {
  const { kind, range, nth } = rule.match;
  if (kind !== undefined && ![kind].flat().includes(operation.kind)) return false;
  if (
    range !== undefined &&
    (range.offsetBytes >= operation.offsetBytes + operation.lengthBytes ||
      operation.offsetBytes >= range.offsetBytes + range.lengthBytes)
  ) {
    return false;
  }
  rule.seen += 1;
  return nth === undefined || rule.seen === nth;
}

/** A promise for a power cut; that nobody waits for it is no unhandled rejection. */
function powered(): Deferred<never> {
  const power = deferred<never>();
  power.promise.catch(() => undefined);
  return power;
}

function injected(): Error {
  return new DeviceError('io', 'Injected failure', { device: 'faulty', errno: 'EIO' });
}

function powerCutError(): Error {
  return new DeviceError('io', 'The power was cut', { device: 'faulty' });
}
