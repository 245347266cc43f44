/**
 * A volume over a random layout beside a model of it (`../sim/model.ts`), for tests with a seed: the members are devices
 * whose calls a seeded scheduler lets go in any order, that fail, go away and come back, and that lose power with the
 * volume's directory. A mirror always keeps a member that is current and well: more than that it does not promise.
 */

import { cpSync, readdirSync, rmSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { KIB, ManualClock, messageOf, SeededRandom, systemCode } from '../base/index.ts';
import { type FaultyDevice, type FaultyKind } from '../device/index.ts';
import {
  LossyDisk,
  type ModelImage,
  ModelVolume,
  Scheduler,
  SECTOR_BYTES,
  sectorsOf,
  turns,
  within,
} from '../sim/index.ts';
import { createVolume, Volume } from './index.ts';
import type { ExtentStatus } from './home-mirrors.ts';
import { type Disk, Disks } from './layout.fixture.ts';
import type { LayoutExtent } from './layout.ts';

const TRACK_BYTES = 8 * KIB;
/** Half a track: extents begin in the middle of tracks, too. */
const UNIT_BYTES = 4 * KIB;
const DISK_BYTES = 128 * KIB;

type Member = { readonly place: string; readonly state: string };

export class LayoutWorld {
  readonly random: SeededRandom;
  readonly scheduler: Scheduler;
  readonly model: ModelVolume;
  readonly tally = new Map<string, number>();
  readonly extents: readonly LayoutExtent[];
  readonly sizeBytes: number;
  readonly #disks = new Disks();
  readonly #names: string[] = [];
  /** Disks that will fail a call, or have. */
  readonly #ill = new Set<string>();
  readonly #pending = new Set<Promise<void>>();
  readonly #snapshots = new Map<string, ModelImage>();
  #lossy: LossyDisk | undefined;
  #parent = '';
  #volume: Volume | undefined;
  #life = 0;
  #number = 0;
  #problem: Error | undefined;

  constructor(seed: number) {
    this.random = new SeededRandom(seed);
    this.scheduler = new Scheduler(this.random);
    const extentCount = 1 + this.random.below(3);
    this.extents = Array.from({ length: extentCount }, (_, index) =>
      this.#someExtent(index === extentCount - 1),
    );
    const lengths = this.extents.map(({ lengthBytes }) => lengthBytes ?? this.#someLength());
    this.sizeBytes =
      lengths.reduce((sum, length) => sum + length, 0) - (this.random.chance(0.5) ? SECTOR_BYTES : 0);
    this.model = new ModelVolume(this.sizeBytes);
  }

  #someLength(): number {
    return (2 + this.random.below(7)) * UNIT_BYTES;
  }

  #someExtent(isLast: boolean): LayoutExtent {
    const kind = this.random.pick(['mirror', 'mirror', 'mirror', 'stripe', 'plain'] as const);
    const count = kind === 'plain' ? 1 : 2 + this.random.below(2);
    const members = Array.from({ length: count }, () => ({ place: this.#addDisk() }));
    return {
      kind,
      members,
      ...(isLast ? {} : { lengthBytes: this.#someLength() }),
      ...(kind === 'stripe' ? { stripeBytes: this.random.pick([UNIT_BYTES, 2 * UNIT_BYTES]) } : {}),
    };
  }

  #addDisk(): string {
    this.#number += 1;
    const name = `d${this.#number}`;
    this.#disks.add(name, DISK_BYTES, (device) => this.#watch(device));
    this.#names.push(name);
    return `mem:${name}`;
  }

  #watch(device: FaultyDevice): void {
    device.delay({}, ({ kind }) => this.scheduler.park(kind, 0.3));
  }

  get volume(): Volume {
    if (this.#volume === undefined) throw new Error('The volume is not open');
    return this.#volume;
  }

  count(what: string): void {
    this.tally.set(what, (this.tally.get(what) ?? 0) + 1);
  }

  async start(): Promise<void> {
    this.#parent = await mkdtemp(join(tmpdir(), 'cowbell-layout-world-'));
    this.scheduler.open();
    await createVolume(this.#directory, {
      sizeBytes: this.sizeBytes,
      trackSizeBytes: TRACK_BYTES,
      layout: { extents: this.extents },
      registry: this.#disks,
    });
    this.#lossy = this.#watchDirectory();
    await this.#open();
    this.scheduler.open();
    if (this.volume.mirrors !== undefined) await this.#rebuild();
    this.scheduler.close();
  }

  get #directory(): string {
    return join(this.#parent, 'v');
  }

  /** Syncs take their time, as the members' calls do. */
  #watchDirectory(): LossyDisk {
    return new LossyDisk(this.#directory, {
      onEvent: async (event, when) => {
        if (event.kind === 'file' && when === 'before') await this.scheduler.park('sync', 0.3);
        return undefined;
      },
    });
  }

  async #open(): Promise<void> {
    this.scheduler.open();
    this.#volume = await Volume.open(this.#directory, {
      registry: this.#disks,
      clock: new ManualClock(),
      activity: 'testing',
      intentRegionTracks: 1 + this.random.below(2),
      timer: () => () => undefined,
    });
    this.scheduler.close();
  }

  // --- What the users do ---

  /** A change of any kind, which goes on beside the next steps. */
  change(): void {
    const first = this.random.below(this.model.sectorCount);
    const count = 1 + this.random.below(Math.min(24, this.model.sectorCount - first));
    if (this.model.isBusy(first, count)) return;
    const kind = this.random.pick(['write', 'write', 'write', 'zeroes', 'trim'] as const);
    const values = kind === 'write' ? this.model.newValues(count) : Array.from({ length: count }, () => 0);
    const fua = this.random.chance(0.1);
    const change = this.model.begin(first, values, { isTrim: kind === 'trim', isFua: fua });
    const at = first * SECTOR_BYTES;
    const { volume } = this;
    const perform = async (): Promise<void> => {
      if (kind === 'write') await volume.write(sectorsOf(values), at, { fua });
      else if (kind === 'zeroes') await volume.writeZeroes(at, count * SECTOR_BYTES, { fua, mayTrim: true });
      else await volume.trim(at, count * SECTOR_BYTES, { fua });
    };
    this.follow(perform(), () => this.model.finish(change));
    this.count('changes');
  }

  flush(): void {
    const span = this.model.openSpan();
    this.follow(this.volume.flush(), () => this.model.flushed(span));
    this.count('flushes');
  }

  read(): void {
    const first = this.random.below(this.model.sectorCount);
    const count = 1 + this.random.below(Math.min(32, this.model.sectorCount - first));
    const content = Buffer.alloc(count * SECTOR_BYTES);
    const span = this.model.openSpan();
    const reading = (async () => this.volume.read(content, first * SECTOR_BYTES))();
    this.follow(reading, () => {
      this.model.closeSpan(span);
      const problem = span.mismatch(content, first);
      if (problem !== undefined) throw new Error(`A read: ${problem}`);
    });
    this.count('reads');
  }

  /** A point, and what needs it. */
  snapshot(): void {
    const [oldest] = this.#snapshots.keys();
    if (this.#snapshots.size >= 2 && oldest !== undefined) {
      this.#snapshots.delete(oldest);
      this.follow(this.volume.deleteSnapshot(oldest));
      return;
    }
    this.#number += 1;
    const name = `s${this.#number}`;
    const span = this.model.openSpan();
    const made = this.volume.createSnapshot(name).then(() => undefined);
    this.follow(made, () => {
      this.model.closeSpan(span);
      this.#snapshots.set(name, span);
    });
    this.count('points');
  }

  // --- What befalls the members ---

  /** Some member of a mirror that is current and well, where there is another one. */
  #spareMember(): { readonly place: string; readonly disk: Disk } | undefined {
    const parts = (this.volume.status().parts ?? []).filter(({ kind }) => kind === 'mirror');
    const spare = parts.flatMap((part) => {
      const well = this.#wellMembers(part);
      return well.length < 2 ? [] : well;
    });
    if (spare.length === 0) return undefined;
    const { place } = this.random.pick(spare);
    return { place, disk: this.#diskOf(place) };
  }

  #wellMembers({ members }: ExtentStatus): readonly Member[] {
    return members.flatMap((member) => {
      if (!('state' in member) || member.state !== 'in-sync') return [];
      const isWell = !this.#diskOf(member.place).isGone && !this.#ill.has(member.place);
      return isWell ? [{ place: member.place, state: member.state }] : [];
    });
  }

  #diskOf(place: string): Disk {
    return this.#disks.get(place.slice('mem:'.length));
  }

  goAway(): void {
    const member = this.#spareMember();
    if (member === undefined) return;
    const { faulty } = member.disk;
    // What it had not made durable may be lost.
    this.follow(faulty.powerCut(this.random));
    member.disk.goAway();
    this.#ill.add(member.place);
    this.count('members gone');
  }

  failOnce(): void {
    const member = this.#spareMember();
    if (member === undefined) return;
    const kinds: readonly FaultyKind[] = [
      this.random.pick(['write', 'flush', 'read', 'writeZeroes'] as const),
    ];
    member.disk.faulty.fail({ kind: kinds, nth: 1 });
    this.#ill.add(member.place);
    this.count('failures');
  }

  /** All are well again, and come back behind the users. */
  comeBack(): void {
    for (const name of this.#names) {
      const disk = this.#disks.get(name);
      const place = `mem:${name}`;
      if (!disk.isGone && !this.#ill.has(place)) continue;
      // A member that has not noticed yet still has the device that is gone.
      const isNoticed = !this.#isUsed(place);
      if (disk.isGone || isNoticed) disk.comeBack();
      if (isNoticed) this.#ill.delete(place);
    }
    if (this.volume.mirrors === undefined) return;
    this.follow(this.#rebuild());
    this.count('rebuilds');
  }

  /** Whether a member has the device of that place open. */
  #isUsed(place: string): boolean {
    const members = (this.volume.status().parts ?? []).flatMap((part) => part.members);
    return members.some((member) => member.place === place && 'state' in member && member.state !== 'away');
  }

  #rebuild(): Promise<void> {
    const { volume } = this;
    return volume.careForMirrors(async (mirrors, signal) => {
      await mirrors.rejoin();
      try {
        await mirrors.rebuild({ signal });
      } catch (error) {
        if (systemCode(error) !== 'member-lost') throw error;
      }
    });
  }

  replace(): void {
    const member = this.#spareMember();
    if (member === undefined || this.random.chance(0.5)) return;
    const place = this.#addDisk();
    const { volume } = this;
    // The others must not go meanwhile.
    this.#ill.add(member.place);
    this.follow(
      volume.careForMirrors(async (mirrors) => {
        try {
          await mirrors.replace(member.place, place);
        } catch (error) {
          // The other one may have failed meanwhile.
          if (systemCode(error) !== 'last-member') throw error;
        }
      }),
    );
    this.count('replacements');
  }

  // --- Ends and beginnings ---

  follow(work: Promise<void>, onDone: () => void = () => undefined): void {
    const life = this.#life;
    const followed = work
      .then(() => {
        if (life === this.#life) onDone();
      })
      .catch((error: unknown) => {
        if (life !== this.#life) return;
        this.#problem ??= error instanceof Error ? error : new Error(messageOf(error));
      })
      .finally(() => this.#pending.delete(followed));
    this.#pending.add(followed);
  }

  check(): void {
    if (this.#problem !== undefined) throw this.#problem;
  }

  async settle(): Promise<void> {
    this.scheduler.open();
    const idle = async (): Promise<void> => {
      while (this.#pending.size > 0) await Promise.all(this.#pending);
    };
    await within(idle(), 'what is under way', 5_000);
    this.scheduler.close();
    this.check();
  }

  async reopen(): Promise<void> {
    await this.settle();
    this.scheduler.open();
    await within(this.volume.close(), 'a clean stop', 5_000);
    this.#volume = undefined;
    for (const name of this.#names) {
      const disk = this.#disks.get(name);
      // One that is gone stays away; what was to fail is of the last life.
      if (this.#ill.has(`mem:${name}`) && !disk.isGone) disk.comeBack();
    }
    this.#ill.clear();
    await this.#open();
    await this.assertContent('after a clean stop');
    this.count('clean stops');
  }

  /** The power of the machine goes now, with that of its members. */
  async powerCut(): Promise<void> {
    await turns(2);
    this.check();
    const last = this.volume;
    this.#life += 1;
    this.#lossy?.powerCut(this.random);
    this.#lossy?.close();
    const found = join(this.#parent, 'found');
    cpSync(this.#directory, found, { recursive: true, preserveTimestamps: true });
    const cuts = this.#names.map(async (name) => {
      const disk = this.#disks.get(name);
      if (disk.isGone) return;
      const cut = disk.faulty.powerCut(this.random);
      disk.goAway();
      await cut;
      // One that was ill is well again, or was away before.
      disk.comeBack();
    });
    this.scheduler.open();
    await Promise.all(cuts);
    await within(
      last.close().catch(() => undefined),
      'a volume without power',
    );
    await within(Promise.allSettled(this.#pending), 'what was under way', 5_000);
    this.#volume = undefined;
    this.#ill.clear();
    // What was left of that life has done something to it. The directory itself is the volume's identity.
    for (const name of readdirSync(this.#directory))
      rmSync(join(this.#directory, name), { recursive: true, force: true });
    cpSync(found, this.#directory, { recursive: true, preserveTimestamps: true });
    rmSync(found, { recursive: true });
    this.#lossy = this.#watchDirectory();
    for (const disk of this.#names.map((name) => this.#disks.get(name))) disk.locks.clear();
    await this.#open();
    this.scheduler.open();
    const problem = this.model.cut(await this.#content());
    if (problem !== undefined) throw new Error(`After a power cut ${problem}`);
    for (const name of this.#snapshots.keys())
      if (!this.volume.snapshots().some((one) => one.name === name)) this.#snapshots.delete(name);
    await this.assertEqual('after a power cut');
    this.scheduler.close();
    this.count('power cuts');
  }

  async #content(): Promise<Buffer> {
    const content = Buffer.alloc(this.sizeBytes);
    await this.volume.read(content, 0);
    return content;
  }

  async assertContent(when: string): Promise<void> {
    this.scheduler.open();
    const content = await this.#content();
    this.model.observe(content, { isFinal: false });
    const problem = this.model.snapshot().mismatch(content);
    if (problem !== undefined) throw new Error(`${when}: ${problem}`);
    this.scheduler.close();
  }

  /** All members that are current hold the same. Nothing may be under way. */
  async assertEqual(when: string): Promise<void> {
    const { mirrors } = this.volume;
    if (mirrors?.isMirrored !== true) return;
    const places: string[] = [];
    await mirrors.scrub({
      isRepairing: false,
      onDifference: ({ first, reference, places: others }) => {
        places.push(`track ${first} of ${others.join(', ')} is not that of ${reference}`);
      },
    });
    if (places.length > 0) throw new Error(`${when}: ${places.join('; ')}`);
  }

  /** Everything comes to rest, all members come back, and all is as it should be. */
  async finish(): Promise<void> {
    await this.settle();
    for (const name of this.#names) {
      const disk = this.#disks.get(name);
      if (disk.isGone) disk.comeBack();
    }
    await this.reopen();
    this.scheduler.open();
    if (this.volume.mirrors !== undefined) {
      await this.#rebuild();
      for (const { members } of this.volume.status().parts ?? [])
        for (const member of members)
          if ('state' in member && member.state !== 'in-sync')
            throw new Error(`${member.place} is ${member.state}`);
      await this.assertEqual('at the end');
    }
    await this.assertContent('at the end');
    this.scheduler.open();
    for (const [name, image] of this.#snapshots) await this.#assertSnapshot(name, image);
    // Each copy by itself has everything.
    const content = await this.#content();
    await this.volume.close();
    await this.#open();
    this.scheduler.open();
    if (!content.equals(await this.#content())) throw new Error('After a restart the volume differs');
  }

  async #assertSnapshot(name: string, image: ModelImage): Promise<void> {
    const device = this.volume.openSnapshot(name);
    const kept = Buffer.alloc(device.sizeBytes);
    await device.read(kept, 0);
    await device.close();
    const wrong = image.mismatch(kept);
    if (wrong !== undefined) throw new Error(`Snapshot ${name} is not its freeze: ${wrong}`);
  }

  async end(): Promise<void> {
    this.scheduler.open();
    await this.#volume?.close().catch(() => undefined);
    this.#lossy?.close();
    await rm(this.#parent, { recursive: true, force: true, maxRetries: 5 });
  }
}
