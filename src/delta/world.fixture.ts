/**
 * A delta store and a model of it, for tests: what was appended in order, what was flushed, what the volume held at
 * each point. Everything lives in one scratch directory under a lossy disk.
 */

import { mkdirSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Test } from 'tap';
import { assert, KIB, ManualClock, MIB, present, SeededRandom } from '../base/index.ts';
import { type BlockDevice, DeviceRegistry, FaultyDevice, type OpenOptions } from '../device/index.ts';
import { LossyDisk, makeScratchDirectory } from '../sim/index.ts';
import { type DeltaPlace, DeltaReader, DeltaStore, type DeltaUntil } from './index.ts';

export const TRACK_BYTES = 16 * KIB;
/** Ends inside of a track. */
export const VOLUME_BYTES = 40 * TRACK_BYTES + 4 * KIB;
export const VOLUME_ID = '0123456789abcdef0123456789abcdef';
export const SEGMENT_BYTES = 64 * KIB;
/** The most that one record of such a segment carries. */
const RECORD_BYTES_MAX = 13 * 4096;
const DEVICE_BYTES = 8 * MIB;

export type MemberKind = 'directory' | 'device';

export interface ModelChange {
  readonly sequence: number;
  readonly timeMs: number;
  readonly offsetBytes: number;
  /** Zeroes for zeroes. */
  readonly content: Buffer;
}

export interface ModelPoint {
  readonly point: string;
  /** Changes up to here are before it. */
  readonly sequence: number;
}

export interface WorldOptions {
  readonly seed: number;
  readonly kinds: readonly MemberKind[];
  readonly bytesMax?: number;
}

export class DeltaWorld {
  readonly random: SeededRandom;
  readonly clock = new ManualClock();
  readonly root: string;
  readonly disk: LossyDisk;
  readonly places: readonly DeltaPlace[];
  readonly lost = new Set<string>();
  readonly damage: string[] = [];
  changes: ModelChange[] = [];
  points: ModelPoint[] = [{ point: '', sequence: 0 }];
  /** Changes up to here were flushed. */
  flushed = 0;
  readonly #scratch = makeScratchDirectory();
  readonly #devices = new Map<string, FaultyDevice>();
  #store: DeltaStore | undefined;
  #salt = 0;

  constructor(t: Test, { seed, kinds, bytesMax }: WorldOptions) {
    this.random = new SeededRandom(seed);
    this.root = join(this.#scratch, 'disk');
    mkdirSync(this.root);
    this.places = kinds.map((kind, index) => {
      const place = join(this.root, `member-${index}`);
      if (kind === 'directory') mkdirSync(place);
      else {
        writeFileSync(place, '');
        truncateSync(place, DEVICE_BYTES);
      }
      return { place, ...(bytesMax === undefined ? {} : { bytesMax }) };
    });
    this.disk = new LossyDisk(this.root, { tear: () => true });
    t.teardown(async () => {
      await this.#store?.close();
      this.disk.close();
      rmSync(this.#scratch, { recursive: true, force: true });
    });
  }

  get store(): DeltaStore {
    return present(this.#store, 'The store is open');
  }

  /** Opens files with what fails as told, by their path. */
  readonly registry = {
    open: async (uri: string, options: OpenOptions): Promise<BlockDevice> => {
      const device = new FaultyDevice(await new DeviceRegistry().open(uri, options));
      this.#devices.set(uri, device);
      return device;
    },
  };

  device(index: number): FaultyDevice {
    return present(this.#devices.get(this.#place(index)), 'The member is an open device');
  }

  #place(index: number): string {
    return present(this.places[index], 'There is such a member').place;
  }

  get lastPoint(): ModelPoint {
    return present(this.points.at(-1), 'There is a point');
  }

  async open(): Promise<void> {
    this.#store = await DeltaStore.open({
      volumeId: VOLUME_ID,
      volumeName: 'v',
      trackSizeBytes: TRACK_BYTES,
      sizeBytes: () => VOLUME_BYTES,
      startPoint: this.lastPoint.point,
      isNew: this.lastPoint.point === '' && this.lost.size === 0,
      members: this.places,
      lostMembers: [...this.lost],
      registry: this.registry,
      clock: this.clock,
      onMemberLost: (place) => {
        this.lost.add(place);
        return Promise.resolve();
      },
      segmentBytes: SEGMENT_BYTES,
    });
  }

  async close(): Promise<void> {
    await this.#store?.close();
    this.#store = undefined;
  }

  /** As a killed process leaves it; with the power, what was not flushed may be there in part. */
  async crash(kind: 'kill' | 'power'): Promise<void> {
    this.#store = undefined;
    for (const device of this.#devices.values()) await device.close();
    this.#devices.clear();
    if (kind === 'power') this.disk.powerCut(this.random);
  }

  /** What is there after a crash is what was flushed, and a part of the rest, from its beginning. */
  async forgetCutOff(): Promise<void> {
    const reader = await this.reader(
      this.places.map(({ place }) => place).filter((place) => !this.lost.has(place)),
    );
    let found = 0;
    for await (const { sequence } of reader.records(reader.points[0]?.point ?? '')) found = sequence;
    await reader.close();
    assert(found >= this.flushed, `Changes up to ${found} are there, of ${this.flushed} that were flushed`);
    this.changes = this.changes.filter(({ sequence }) => sequence <= found);
  }

  async append(offsetBytes: number, lengthBytes: number, kind: 'write' | 'zeroes'): Promise<void> {
    const content = Buffer.alloc(lengthBytes);
    if (kind === 'write') {
      this.#salt += 1;
      for (let at = 0; at < lengthBytes; at += 4) content.writeUInt32BE(this.#salt * 65_537 + at, at);
    }
    await this.store.append(
      kind === 'write' ? { kind, source: content } : { kind },
      offsetBytes,
      lengthBytes,
    );
    const { lastSequence } = this.store.status();
    const count = kind === 'write' ? Math.ceil(lengthBytes / RECORD_BYTES_MAX) : 1;
    for (let part = 0; part < count; part += 1) {
      const at = part * RECORD_BYTES_MAX;
      this.changes.push({
        sequence: lastSequence - count + 1 + part,
        timeMs: this.clock.now(),
        offsetBytes: offsetBytes + at,
        content: content.subarray(at, count === 1 ? undefined : at + RECORD_BYTES_MAX),
      });
    }
  }

  async flush(): Promise<void> {
    const last = this.changes.at(-1)?.sequence ?? 0;
    await this.store.flush();
    this.flushed = Math.max(this.flushed, last);
  }

  async switchTo(point: string): Promise<void> {
    await this.store.prepareSwitch();
    this.points.push({ point, sequence: this.changes.at(-1)?.sequence ?? 0 });
    this.store.switchTo(point, this.clock.now());
    await this.flush();
  }

  /** The volume after the changes up to a number. */
  imageAt(sequence: number): Buffer {
    const image = Buffer.alloc(VOLUME_BYTES);
    for (const change of this.changes)
      if (change.sequence <= sequence) change.content.copy(image, change.offsetBytes);
    return image;
  }

  reader(places = this.places.map(({ place }) => place)): Promise<DeltaReader> {
    return DeltaReader.open(places, {
      registry: new DeviceRegistry(),
      volumeId: VOLUME_ID,
      onDamage: (sentence) => this.damage.push(sentence),
    });
  }

  /** What the logs make of `base`, by the index and by the records in order, which must be the same. */
  async composed(
    reader: DeltaReader,
    base: Buffer,
    startPoint: string,
    until: DeltaUntil = {},
  ): Promise<Buffer> {
    const byRecords = Buffer.from(base);
    for await (const record of reader.records(startPoint, until)) {
      const target = byRecords.subarray(record.offsetBytes, record.offsetBytes + record.lengthBytes);
      if (record.kind === 'write') await record.read(target);
      if (record.kind === 'zeroes') target.fill(0);
    }
    const byIndex = Buffer.from(base);
    const index = await reader.index(startPoint, until);
    const touched = index.touched();
    const whole = index.whole();
    for (let track = 0; track * TRACK_BYTES < VOLUME_BYTES; track += 1) {
      const target = byIndex.subarray(track * TRACK_BYTES, (track + 1) * TRACK_BYTES);
      // Nothing of what was there may be needed of these.
      if (whole.has(track)) await index.read(track, target.fill(0xaa));
      else assert((await index.overlay(track, target)) === touched.has(track), `Track ${track} is touched`);
    }
    assert(byIndex.equals(byRecords), 'The index gives what the records give');
    return byRecords;
  }
}
