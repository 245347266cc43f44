/**
 * A volume under recovery beside a model of it (`../sim/model.ts`), for tests with a seed: its home, its backup side and
 * a mirror are devices whose calls a seeded scheduler lets go in any order, whose side may fail to give some tracks, and
 * whose home may lose power. The side is another machine, and never does.
 */

import { cpSync, readdirSync, rmSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ManualClock, messageOf, SeededRandom, systemCode } from '../base/index.ts';
import { DeviceError, FaultyDevice, MemoryDevice } from '../device/index.ts';
import {
  type ModelImage,
  ModelVolume,
  Scheduler,
  SECTOR_BYTES,
  sectorsOf,
  TEST_TRACK_BYTES,
  turns,
  within,
} from '../sim/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { type BackupSession, type BackupSide, createVolume, Volume } from './index.ts';
import { unclosed } from './recovering.fixture.ts';

export const TRACK_SECTORS = TEST_TRACK_BYTES / SECTOR_BYTES;
const TRACK_COUNT = 10;
const TAIL_SECTORS = 3;
export const SECTOR_COUNT = (TRACK_COUNT - 1) * TRACK_SECTORS + TAIL_SECTORS;
const SIZE_BYTES = SECTOR_COUNT * SECTOR_BYTES;
export const POINT = '0123456789abcdef0123456789abcdef';

export type MirrorKind = 'no mirror' | 'the side' | 'another';

/** A backup session, or a snapshot, with what its freeze may have caught. */
interface Kept {
  readonly image: ModelImage;
}

interface RunningSession extends Kept {
  readonly session: BackupSession;
  readonly content: Buffer;
}

export class RecoveryWorld {
  readonly random: SeededRandom;
  readonly mirrorKind: MirrorKind;
  readonly model = new ModelVolume(SIZE_BYTES);
  readonly scheduler: Scheduler;
  readonly tally = new Map<string, number>();
  readonly snapshots = new Map<string, Kept>();
  readonly sessions: RunningSession[] = [];
  /** Tracks that changes were issued for. */
  readonly touched = TrackSet.empty();
  /** What the side held when the recovery began: what a medium brings. */
  readonly original: Buffer;
  readonly #sideMemory = new MemoryDevice({ sizeBytes: SIZE_BYTES });
  readonly #mirrorMemory = new MemoryDevice({ sizeBytes: SIZE_BYTES });
  readonly #homeMemory = new MemoryDevice({ sizeBytes: SIZE_BYTES });
  /** Tracks that the side cannot give now. */
  readonly #unreadable = new Set<number>();
  readonly #pending = new Set<Promise<void>>();
  #problem: Error | undefined;
  #parent = '';
  #home: FaultyDevice;
  #volume: Volume | undefined;
  /** Changes with each power cut: what was begun before belongs to a machine that is off. */
  #life = 0;
  /** That of which the other machines still take calls. */
  #reachableLife = 0;
  #wasCut = false;
  #isMirrored = true;
  #number = 0;

  constructor(seed: number, mirrorKind: MirrorKind) {
    this.random = new SeededRandom(seed);
    this.mirrorKind = mirrorKind;
    this.scheduler = new Scheduler(this.random);
    const values = this.model.newValues(SECTOR_COUNT);
    // Some tracks of zeroes.
    for (let track = 0; track < TRACK_COUNT; track += 1) {
      if (!this.random.chance(0.2)) continue;
      values.fill(0, track * TRACK_SECTORS, (track + 1) * TRACK_SECTORS);
    }
    this.original = sectorsOf(values);
    this.model.finish(this.model.begin(0, values));
    this.model.flushed(this.model.openSpan());
    this.#sideMemory.write(this.original, 0);
    this.#mirrorMemory.write(this.original, 0);
    // What lies in the home is of no meaning.
    this.#homeMemory.write(Buffer.alloc(SIZE_BYTES, 0xa7), 0);
    this.#home = this.#homeFor();
  }

  get volume(): Volume {
    if (this.#volume === undefined) throw new Error('The volume is not open');
    return this.#volume;
  }

  get wasCut(): boolean {
    return this.#wasCut;
  }

  count(what: string): void {
    this.tally.set(what, (this.tally.get(what) ?? 0) + 1);
  }

  async start(): Promise<void> {
    this.#parent = await mkdtemp(join(tmpdir(), 'cowbell-recovery-world-'));
    const clock = new ManualClock();
    await createVolume(this.#directory, {
      sizeBytes: SIZE_BYTES,
      trackSizeBytes: TEST_TRACK_BYTES,
      clock,
      recovery: {
        record: {
          side: { kind: 'device', uri: 'side' },
          startedMs: clock.now(),
          point: POINT,
          ...(this.mirrorKind === 'no mirror' ? {} : { mirror: 'mirror' }),
        },
        tracks: TrackSet.all(TRACK_COUNT),
        point: { point: POINT, createdMs: clock.now() },
      },
    });
    await this.#open();
  }

  get #directory(): string {
    return join(this.#parent, 'v');
  }

  #homeFor(): FaultyDevice {
    const home = new FaultyDevice(this.#homeMemory);
    home.delay({}, ({ kind }) => this.scheduler.park(`home ${kind}`, 0.4));
    return home;
  }

  async #open(): Promise<void> {
    const home = this.#home;
    this.scheduler.open();
    this.#volume = await Volume.open(this.#directory, {
      registry: { open: async () => unclosed(home) },
      openSide: async () => this.#side(),
      activity: 'testing',
      intentRegionTracks: 2,
      timer: () => () => undefined,
    });
    this.scheduler.close();
    this.#isMirrored &&= this.#volume.recovery !== undefined;
    if (this.#volume.recovery?.record.mirrorLost !== undefined) throw new Error('The mirror was lost');
  }

  #side(): BackupSide {
    const life = this.#life;
    const device = this.#remote(this.#sideMemory, life);
    if (this.mirrorKind === 'no mirror') return { device, close: async () => undefined };
    const mirror = this.mirrorKind === 'the side' ? device : this.#remote(this.#mirrorMemory, life);
    return { device, mirror, close: async () => undefined };
  }

  /** A device of another machine, as it is reached in this life. */
  #remote(memory: MemoryDevice, life: number): FaultyDevice {
    const device = new FaultyDevice(memory);
    device.delay({}, async ({ kind, offsetBytes, lengthBytes }) => {
      const isSide = memory === this.#sideMemory;
      await this.scheduler.park(`${isSide ? 'side' : 'mirror'} ${kind}`, 0.4);
      if (life < this.#reachableLife) throw new DeviceError('io', 'The machine is off', { device: 'test' });
      if (!isSide || kind !== 'read') return;
      for (const track of this.#unreadable) {
        const at = track * TEST_TRACK_BYTES;
        if (at < offsetBytes + lengthBytes && offsetBytes < at + TEST_TRACK_BYTES)
          throw new DeviceError('io', 'The side cannot give it', { device: 'test' });
      }
    });
    return device;
  }

  /** The side cannot give some tracks, until `healSide`. */
  harmSide(): void {
    this.#unreadable.add(this.random.below(TRACK_COUNT));
    this.count('side harmed');
  }

  healSide(): void {
    this.#unreadable.clear();
  }

  /** Whether an error is one that the test brought about. */
  isExpected(error: unknown): boolean {
    const message = messageOf(error);
    if (systemCode(error) === 'closed') return true;
    return this.#wasHarmed && message.includes('The side cannot give it');
  }

  get #wasHarmed(): boolean {
    return this.tally.has('side harmed');
  }

  /** Something that goes on beside everything else; what goes wrong in it is told by `check`. */
  follow(work: Promise<void>): void {
    const life = this.#life;
    const followed = work
      .catch((error: unknown) => {
        // The machine that it ran on is off.
        if (life !== this.#life) return;
        this.#problem ??= error instanceof Error ? error : new Error(messageOf(error));
      })
      .finally(() => this.#pending.delete(followed));
    this.#pending.add(followed);
  }

  check(): void {
    if (this.#problem !== undefined) throw this.#problem;
  }

  get pendingCount(): number {
    return this.#pending.size;
  }

  /** Everything that is under way ends. */
  async settle(): Promise<void> {
    this.scheduler.open();
    await within(
      (async () => {
        while (this.#pending.size > 0) await Promise.all(this.#pending);
      })(),
      'what is under way',
      3_000,
    );
    this.scheduler.close();
    this.check();
  }

  /** Stops cleanly and opens again. */
  async reopen(): Promise<void> {
    this.scheduler.open();
    await this.#endSessions();
    await this.settle();
    this.scheduler.open();
    await within(this.volume.close(), 'a clean stop', 3000);
    if (this.volume.recovery === undefined && this.mirrorContent()?.equals(this.homeContent()) === false)
      throw new Error('The mirror differs at the end of the recovery');
    this.#volume = undefined;
    await this.#open();
    this.count('clean reopenings');
  }

  async #endSessions(): Promise<void> {
    for (const { session } of this.sessions.splice(0)) {
      session.fail(new Error('The test ends it'));
      await session.whenEnded();
    }
  }

  /** The power of the home's machine goes now, and comes back: what is there then must be what the model allows. */
  async powerCut(): Promise<void> {
    const found = join(this.#parent, 'found');
    cpSync(this.#directory, found, { recursive: true });
    const last = this.volume;
    const cut = this.#home.powerCut(this.random);
    this.#home.switchOff();
    this.#life += 1;
    // What was on its way to the other machine may have come there or not.
    if (this.random.chance(0.5)) {
      for (const which of ['side write', 'mirror write'])
        this.scheduler.fail(which, new DeviceError('io', 'The machine is off', { device: 'test' }));
    } else {
      this.scheduler.open();
      await turns(2);
    }
    this.#reachableLife = this.#life;
    this.#wasCut = true;
    this.scheduler.open();
    await cut;
    for (const { session } of this.sessions.splice(0)) session.fail(new Error('The power was cut'));
    await within(
      last.close().catch(() => undefined),
      'a volume without power',
    );
    await within(Promise.allSettled(this.#pending), 'what was under way', 3000).then(() => undefined);
    this.check();
    this.#volume = undefined;
    // The directory itself is the volume's identity.
    for (const name of readdirSync(this.#directory))
      rmSync(join(this.#directory, name), { recursive: true, force: true });
    cpSync(found, this.#directory, { recursive: true });
    rmSync(found, { recursive: true });
    this.healSide();
    this.#home = this.#homeFor();
    await this.#open();
    this.scheduler.open();
    const problem = this.model.cut(await this.content());
    this.scheduler.close();
    if (problem !== undefined) throw new Error(`After a power cut ${problem}`);
    for (const name of this.snapshots.keys())
      if (!this.volume.snapshots().some((one) => one.name === name)) this.snapshots.delete(name);
    this.count('power cuts');
  }

  nextNumber(): number {
    this.#number += 1;
    return this.#number;
  }

  /** The whole volume, as it reads. */
  async content(): Promise<Buffer> {
    const content = Buffer.alloc(SIZE_BYTES);
    await this.volume.read(content, 0);
    return content;
  }

  homeContent(): Buffer {
    return contentOfMemory(this.#homeMemory);
  }

  /** What must equal the home: the mirror, until the volume is opened without a recovery. */
  mirrorContent(): Buffer | undefined {
    if (this.mirrorKind === 'no mirror' || !this.#isMirrored) return undefined;
    return contentOfMemory(this.mirrorKind === 'the side' ? this.#sideMemory : this.#mirrorMemory);
  }

  sideContent(): Buffer {
    return contentOfMemory(this.#sideMemory);
  }

  async end(): Promise<void> {
    this.scheduler.open();
    await this.#volume?.close().catch(() => undefined);
    await rm(this.#parent, { recursive: true, force: true, maxRetries: 5 });
  }
}

function contentOfMemory(device: MemoryDevice): Buffer {
  const content = Buffer.alloc(SIZE_BYTES);
  device.read(content, 0);
  return content;
}
