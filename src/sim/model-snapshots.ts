/**
 * The snapshots of a model run: made, read, deleted and rolled back to while everything else goes on, with a store
 * that may be full; and what must hold of them, also after a crash.
 *
 * A snapshot that was acknowledged is there and exact until it is deleted, or dropped where the volume does that; one
 * whose deletion was acknowledged never comes back. What was interrupted may be either.
 */

import { systemCode } from '../base/index.ts';
import type { SnapshotDevice, SnapshotInfo } from '../volume/index.ts';
import { contentOf, type ModelImage, SECTOR_BYTES, valuesOf } from './model.ts';
import { isInjected, type World } from './model-world.ts';
import { must } from './promises.ts';
import { within } from './scheduler.ts';

interface Known {
  /** `maybe`: being made or deleted, or that was interrupted. */
  state: 'ready' | 'maybe' | 'gone';
  image: ModelImage | undefined;
}

interface Rollback {
  /** What each sector is to hold. */
  readonly values: readonly number[];
  /** What a power cut may leave where nothing of it was written. */
  readonly before: ModelImage;
}

export class ModelSnapshots {
  readonly #world: World;
  /** By name, oldest first. */
  readonly #known = new Map<string, Known>();
  #makingCount = 0;
  /** A store had no room at some time since the volume was opened. */
  #wasFull = false;
  /** One that runs or was interrupted. */
  #rollback: Rollback | undefined;

  constructor(world: World) {
    this.#world = world;
  }

  get isMaking(): boolean {
    return this.#makingCount > 0;
  }

  get isRollingBack(): boolean {
    return this.#rollback !== undefined;
  }

  get hasReady(): boolean {
    return this.#ready().length > 0;
  }

  /** Begins to make one. */
  make(): void {
    const world = this.#world;
    const name = `n${this.#known.size + 1}`;
    const known: Known = { state: 'maybe', image: undefined };
    this.#known.set(name, known);
    world.trace(`make ${name}`);
    this.#makingCount += 1;
    const making = async (): Promise<void> => {
      try {
        const { point } = await world.volume.createSnapshot(name);
        known.image = world.clock.imageOf(point);
        world.images.set(point, known.image);
        if (known.state === 'maybe') known.state = 'ready';
        world.count('snapshots made');
        world.trace(`made ${name}`);
      } catch (error) {
        // Nothing is dropped to make room for a new one.
        const full = this.#wasFull ? ['snapshot-full'] : [];
        this.#allow(error, `Snapshot ${name} could not be made`, [
          'freeze-timeout',
          'snapshot-gone',
          ...full,
        ]);
        world.count('snapshots not made');
      } finally {
        this.#makingCount -= 1;
      }
    };
    world.follow(making());
  }

  /** Begins to delete any of them. */
  delete(): void {
    const world = this.#world;
    const [name, known] = world.random.pick(this.#ready());
    known.state = 'maybe';
    world.trace(`delete ${name}`);
    const deleting = async (): Promise<void> => {
      try {
        await world.volume.deleteSnapshot(name);
        known.state = 'gone';
        world.trace(`deleted ${name}`);
        world.count('snapshots deleted');
      } catch (error) {
        // It stays where it is read; otherwise the rest is done later.
        if (systemCode(error) === 'snapshot-in-use') known.state = 'ready';
        else if (!(systemCode(error) === 'snapshot-full' && this.#wasFull))
          this.#allow(error, `Snapshot ${name} could not be deleted`, ['unknown-snapshot']);
      }
    };
    world.follow(deleting());
  }

  /** Reads a part of one, while others write. */
  read(): void {
    const world = this.#world;
    const [name, known] = world.random.pick(this.#ready());
    const { sectorCount } = world.model;
    const first = world.random.below(sectorCount);
    const count = 1 + world.random.below(sectorCount - first);
    const reading = async (): Promise<void> => {
      const content = Buffer.alloc(count * SECTOR_BYTES);
      let device: SnapshotDevice | undefined;
      try {
        device = world.volume.openSnapshot(name);
        await device.read(content, first * SECTOR_BYTES);
      } catch (error) {
        // One that is being dropped is gone before the volume says so.
        const code = systemCode(error);
        const isDropped =
          (code === 'snapshot-gone' && known.state === 'gone') ||
          (code === 'unknown-snapshot' && this.#mayDrop && this.#ready()[0]?.[1] === known);
        if (!isDropped) this.#allow(error, `Snapshot ${name} could not be read`);
        return;
      } finally {
        await device?.close();
      }
      const problem = known.image?.mismatch(content, first);
      must('exact points', problem === undefined, `Snapshot ${name} differs from its freeze: ${problem}`);
      world.count('snapshot reads');
    };
    world.follow(reading());
  }

  /** Begins to roll back to one; nothing else writes until it has ended. */
  async rollBack(): Promise<void> {
    const world = this.#world;
    await world.writesEnd();
    const ready = this.#ready();
    if (ready.length === 0 || world.model.inFlightCount > 0) return;
    const [name, known] = world.random.pick(ready);
    const content = await this.#contentOf(name);
    this.#compare(name, known, content);
    const values = valuesOf(content);
    const rollback: Rollback = { values, before: world.model.afterCut() };
    this.#rollback = rollback;
    world.trace(`roll back to ${name}`);
    const change = world.model.begin(0, values, { isFua: true });
    const rolling = async (): Promise<void> => {
      try {
        await world.volume.rollBack(name);
        world.model.finish(change);
        this.#rollback = undefined;
        world.count('rollbacks');
      } catch (error) {
        world.model.fail(change);
        this.#allow(error, `Rolling back to ${name} failed`);
        world.count('rollbacks interrupted');
      }
    };
    world.follow(rolling());
  }

  /** There is no room for what snapshots keep, or there is again. */
  setFull(isFull: boolean): void {
    this.#world.full.isFull = isFull;
    this.#wasFull ||= isFull;
  }

  /** Whether a write may be refused for want of room. */
  get mayRefuse(): boolean {
    return this.#wasFull && (!this.#world.dropsSnapshots || this.isRollingBack);
  }

  /** Whether the volume may drop its oldest snapshot now. */
  get #mayDrop(): boolean {
    return (this.#wasFull || this.#world.storesMayFail) && this.#world.dropsSnapshots;
  }

  /** The volume says that it has dropped one. */
  dropped(name: string): void {
    const [oldest] = this.#ready();
    must('exact points', this.#mayDrop, `Snapshot ${name} was dropped for nothing`);
    const known = this.#known.get(name);
    const isOldest = known?.state !== 'ready' || oldest?.[0] === name;
    must('exact points', isOldest, `Snapshot ${name} was dropped, and ${oldest?.[0]} is older`);
    if (known !== undefined) known.state = 'gone';
    this.#world.count('snapshots dropped');
  }

  /**
   * The volume has been opened again: a rollback that was interrupted is finished, or never began.
   *
   * @param before what the home held when it was opened.
   */
  opened(before: Buffer, now: Buffer): void {
    const { model } = this.#world;
    const rollback = this.#rollback;
    this.#rollback = undefined;
    this.#wasFull = this.#world.full.isFull;
    if (rollback === undefined) return;
    if (now.equals(contentOf(rollback.values))) {
      model.finish(model.begin(0, rollback.values, { isFua: true }));
      this.#world.count('rollbacks finished at opening');
      return;
    }
    const problem = now.equals(before) ? rollback.before.mismatch(now) : 'the opening changed it';
    must('exact points', problem === undefined, `A rollback was left in its middle: ${problem}`);
  }

  /** Compares all of them with what is known. Nothing is in flight. */
  async check(): Promise<void> {
    const world = this.#world;
    const listed = new Map(world.volume.snapshots().map((info) => [info.name, info]));
    for (const [name, known] of this.#known) await this.#checkOne(name, known, listed.get(name));
  }

  async #checkOne(name: string, known: Known, info: SnapshotInfo | undefined): Promise<void> {
    const { clock } = this.#world;
    must('exact points', info?.state !== 'damaged', `Snapshot ${name} is damaged: ${info?.reason}`);
    if (info?.state !== 'ready') {
      // One that was being dropped when the power was cut is gone without a word.
      const mayBeDropped = this.#world.dropsSnapshots && this.#ready()[0]?.[0] === name;
      if (mayBeDropped && known.state === 'ready') known.state = 'gone';
      must('exact points', known.state !== 'ready', `Snapshot ${name} was acknowledged and is not there`);
      return;
    }
    must('exact points', known.state !== 'gone', `Snapshot ${name} is there again after its deletion`);
    if (known.state === 'maybe') {
      known.image = clock.imageOf(info.point);
      known.state = 'ready';
    }
    this.#compare(name, known, await this.#contentOf(name));
  }

  #compare(name: string, known: Known, content: Buffer): void {
    const problem = known.image?.mismatch(content);
    must('exact points', problem === undefined, `Snapshot ${name} differs from its freeze: ${problem}`);
    known.image?.narrow(content);
    this.#world.count('tracks verified', this.#world.volume.geometry.trackCount);
  }

  async #contentOf(name: string): Promise<Buffer> {
    const { scheduler, volume, disk } = this.#world;
    const content = Buffer.alloc(disk.sizeBytes);
    const device = volume.openSnapshot(name);
    scheduler.open();
    try {
      await within(Promise.resolve(device.read(content, 0)), 'A read of a snapshot');
    } finally {
      scheduler.close();
      await device.close();
    }
    return content;
  }

  #ready(): [string, Known][] {
    return [...this.#known].filter(([, { state }]) => state === 'ready');
  }

  /** Throws what nobody did anything for. */
  #allow(error: unknown, what: string, codes: readonly string[] = []): void {
    const world = this.#world;
    const code = systemCode(error) ?? '';
    const isFine =
      code === 'closed' ||
      world.isOff ||
      codes.includes(code) ||
      (code === 'snapshot-full' && this.mayRefuse) ||
      (code === 'snapshot-failed' && world.storesMayFail) ||
      (code === 'poisoned' && world.mayFail) ||
      isInjected(error);
    must('nothing fails by itself', isFine, `${what}: ${String(error)}`);
  }
}
