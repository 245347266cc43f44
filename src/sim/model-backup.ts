/** The backup of a model run: how it is started, how it can end, and what must hold however it ended. */

import { backUp, LocalLane, type SetOutcome } from '../backup/index.ts';
import { messageOf, type SeededRandom } from '../base/index.ts';
import type { Store } from '../blockset/index.ts';
import { FaultyDevice, MemoryDevice } from '../device/index.ts';
import { type ContainerArea, DeviceArea, MemoryArea } from '../volume/index.ts';
import { type World } from './model-world.ts';
import { must } from './promises.ts';
import { type SourceStep, SteppedSource } from './stepped-source.ts';
import { within } from './scheduler.ts';

export class RunningBackup {
  readonly store: Store;
  /** Settles when the backup has ended and its session with it. Rejects for broken promises only. */
  readonly ended: Promise<void>;
  isOver = false;
  /** Tracks that no write needs to wait for. */
  readonly saved = new Set<number>();
  readonly trimmed = new Set<number>();
  readonly #world: World;
  /** What its steps are called where they are held. */
  readonly #name: string;
  readonly #source: SteppedSource;
  readonly #abort = new AbortController();
  readonly #containers: readonly FaultyDevice[];
  /** What was done to make it fail. */
  readonly #sabotage: string[] = [];
  #hangsFrom: SourceStep | undefined;

  constructor(world: World, store: Store) {
    const { random } = world;
    const name = `session ${world.stores.findIndex(({ path }) => path === store.path)}`;
    this.#name = name;
    this.#world = world;
    this.store = store;
    for (const name of world.failingSyncs) this.sabotage(`sync ${name} failed`);
    const { areas, devices } = makeAreas(world);
    this.#containers = devices;
    const parkChance = random.pick([0, 0.3, 0.8]);
    this.#source = new SteppedSource({
      volume: world.volume,
      areas,
      step: async (step, side) => {
        if (this.#hangsFrom === step) await world.scheduler.park(`hung ${name}`, 1);
        await world.scheduler.park(`${name} ${step} ${side}`, parkChance);
        if (step === 'mayComplete' && side === 'reply') this.#allowSeal();
      },
      freeze: async (begin) => {
        const session = await world.freeze(begin);
        const { tracks } = session.plan;
        for (let track = 0; track < world.volume.geometry.trackCount; track += 1) {
          if (!tracks.has(track)) this.saved.add(track);
        }
        return session;
      },
      onSaved: (tracks) => {
        for (const track of tracks) this.saved.add(track);
      },
      ...(random.chance(0.5) ? { extents: async (...range) => world.extents(...range) } : {}),
      readBytes: random.pick([512, 2048, 1_048_576]),
    });
    const { trackSizeBytes } = world.volume.geometry;
    const source = this.#source;
    const laneCount = random.pick([1, 1, 2, 3]);
    world.count(`backups with ${laneCount} lanes`);
    const outcome = backUp({
      source,
      lanes: {
        wish: () => ({ count: laneCount, directories: [] }),
        begin: async (parts) => parts.map((part) => new LocalLane(part, source.home)),
        loopsPerLane: random.pick([1, 2]),
      },
      store,
      level: random.pick(['auto', 'incremental', 'differential', 'full']),
      codec: random.pick(['none', 'zstd']),
      signal: this.#abort.signal,
      runBytesMax: trackSizeBytes * random.pick([1, 2, 8]),
      drainBytesMax: trackSizeBytes * random.pick([1, 3]),
    });
    this.ended = this.#follow(outcome, areas);
    this.ended.catch(() => undefined);
  }

  get hasSession(): boolean {
    return this.#source.session !== undefined;
  }

  /** Only its host can end it now. */
  get isHanging(): boolean {
    return this.#hangsFrom !== undefined;
  }

  /** Whether it did not fail by itself. */
  get isSabotaged(): boolean {
    return this.#sabotage.length > 0;
  }

  /** It may fail from now on, for this reason. */
  sabotage(reason: string): void {
    this.#sabotage.push(reason);
  }

  /** As `cancel` does: the session ends, then the worker hears of it. */
  cancel(): void {
    const error = new Error('cancelled by the model');
    const state = this.#source.session?.state;
    if (state === 'completing' || state === 'done') return;
    this.sabotage('cancelled');
    this.#source.session?.fail(error);
    this.#abort.abort(error);
  }

  /** The worker stops answering at a step; only its host can end the session then. */
  hang(step: SourceStep): void {
    this.sabotage('hung');
    this.#hangsFrom = step;
  }

  /** The worker dies where it stands, as a killed child does. */
  kill(): void {
    const error = new Error('killed by the model');
    this.sabotage('killed');
    this.#source.session?.fail(error);
    this.#world.scheduler.fail(this.#name, error);
    this.#world.scheduler.fail(`hung ${this.#name}`, error);
    // The syncs of stores are not told apart: a session beside it may lose one.
    for (const other of this.#world.backups) other.sabotage('killed');
    for (const name of ['set', 'catalog'])
      for (const when of ['before', 'after']) this.#world.scheduler.fail(`sync ${when} ${name}`, error);
    this.#abort.abort(error);
  }

  /** An area of the container fails from now on. @returns whether there is one that can. */
  failContainer(random: SeededRandom): boolean {
    if (this.#containers.length === 0) return false;
    this.sabotage('container failed');
    random.pick(this.#containers).fail({ kind: random.pick(['read', 'write']) });
    return true;
  }

  #allowSeal(): void {
    const { session } = this.#source;
    if (session !== undefined) this.#world.mayShow.add(session.plan.point);
  }

  /** What the host does at the end of its worker, then the checks. */
  async #follow(outcome: Promise<SetOutcome>, areas: readonly ContainerArea[]): Promise<void> {
    const world = this.#world;
    let failure: unknown;
    let set: SetOutcome | undefined;
    try {
      set = await outcome;
    } catch (error) {
      failure = error;
      this.#source.session?.fail(error);
      if (!this.#source.hasBegun) for (const area of areas) await area.close();
    }
    const { session } = this.#source;
    if (session !== undefined) await within(session.whenEnded(), 'A session');
    this.isOver = true;
    world.failingSyncs.clear();
    if (session !== undefined) {
      must(
        'failure loses nothing',
        session.status().tracksLeft === 0,
        'A track stays protected after the session',
      );
      must(
        'failure loses nothing',
        session.status().writesWaiting === 0,
        'A write still waits for the session that ended',
      );
    }
    if (set === undefined) {
      world.count(`backups failed: ${this.#sabotage[0] ?? 'by themselves'}`);
      const isTimeout = messageOf(failure).includes('gave up after');
      must(
        'nothing fails by itself',
        this.isSabotaged || world.mayFail || isTimeout,
        `A backup failed by itself: ${messageOf(failure)}`,
      );
      return;
    }
    world.count(`backups ${set.level}`);
    world.count(`tracks diverted`, set.diverted);
    world.acknowledged.get(this.store.path)?.add(set.set);
    // A volume that is being stopped is not asked any more.
    if (this.isSabotaged) return;
    const consumer = world.volume.status().consumers.find(({ name }) => name === this.store.id);
    must(
      'failure loses nothing',
      consumer?.point === set.point,
      `The consumer is at ${consumer?.point}, its set at ${set.point}`,
    );
  }
}

/** None, one slot, few or plenty; memory, device, or both. */
function makeAreas(world: World): { areas: ContainerArea[]; devices: FaultyDevice[] } {
  const { random, scheduler } = world;
  const { trackSizeBytes, trackCount } = world.volume.geometry;
  const slots = random.pick([0, 0, 1, 1, 2, 3, trackCount]);
  const inMemory = random.pick([0, slots, random.below(slots + 1)]);
  const areas: ContainerArea[] = [];
  const devices: FaultyDevice[] = [];
  if (inMemory > 0) areas.push(new MemoryArea({ sizeBytes: inMemory * trackSizeBytes, trackSizeBytes }));
  if (slots > inMemory) {
    const device = new FaultyDevice(new MemoryDevice({ sizeBytes: (slots - inMemory) * trackSizeBytes }));
    device.delay({}, () => scheduler.park('container', 0.3));
    devices.push(device);
    areas.push(new DeviceArea({ device, trackSizeBytes }));
  }
  world.count(`containers of ${slots > 3 ? 'plenty' : slots} slots`);
  return { areas, devices };
}
