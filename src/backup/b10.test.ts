/**
 * EXAMPLES B10, the cases of a backup that goes straight to media, on the real volume, container, lane and files: a
 * set of two and a half media passes beginning, write, end three times; an error on the second medium passes error
 * once, leaves no visible set, and loses none of the volume's changes. That the failure is one entry in a log, and
 * that the session goes on without its command, is tested with the command itself (`native-tests/`).
 *
 * Method: media are files of a given size; one whose writes fail stands in for a torn one. What is on them is
 * restored straight from them, and imported. The property test writes at random while the session runs, and demands
 * the volume as it was at the freeze.
 */

import fc from 'fast-check';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { KIB, ManualClock, MIB } from '../base/index.ts';
import { Store } from '../blockset/index.ts';
import {
  importMedia,
  MediaChain,
  MediaError,
  type MediaFailure,
  type MediumOutput,
  openMediumInput,
  openMediumOutput,
  type OpenInput,
  type OpenOutput,
  type SessionStep,
} from '../media/index.ts';
import { labelOf, labelsOf, makeTestVolume, writeLabel } from '../sim/index.ts';
import { MemoryArea, type Volume } from '../volume/index.ts';
import { backUp } from './backup.ts';
import { backUpToMedium, type MediumBackupOptions } from './medium-backup.ts';
import { labelsInStore, LocalSource, type LocalSourceOptions, makeTestStore } from './session.fixture.ts';

const TRACK_COUNT = 40;
/** Eight to a frame. */
const TRACK_BYTES = 128 * KIB;
/** Two frames: two and a half of these take the volume. */
const MEDIUM_BYTES = 2.2 * MIB;

/** Media as files in a directory of their own. */
class Files {
  readonly directory = mkdtempSync(join(tmpdir(), 'cowbell-media-'));

  pathOf(medium: number): string {
    return join(this.directory, `m${medium}`);
  }

  get count(): number {
    return readdirSync(this.directory).length;
  }

  /** @param tornAt a medium whose writes fail after so many bytes. */
  output(tornAt?: { readonly medium: number; readonly bytes: number }): OpenOutput {
    return async ({ medium }) => {
      const output = await openMediumOutput(this.pathOf(medium));
      return tornAt?.medium === medium ? tearing(output, tornAt.bytes) : output;
    };
  }

  input(order = Array.from({ length: this.count }, (_, index) => index + 1)): OpenInput {
    const left = [...order];
    return async ({ refused }) => {
      if (refused !== undefined) throw refused;
      const medium = left.shift();
      return medium === undefined ? undefined : openMediumInput(this.pathOf(medium));
    };
  }

  remove(): void {
    rmSync(this.directory, { recursive: true, force: true });
  }
}

function tearing(output: MediumOutput, bytesMax: number): MediumOutput {
  let bytes = 0;
  return {
    place: output.place,
    get takenBytes() {
      return output.takenBytes;
    },
    write: async (parts) => {
      for (const part of parts) bytes += part.length;
      if (bytes > bytesMax) throw new MediaError('io', 'The medium is torn', { place: output.place });
      await output.write(parts);
    },
    finish: () => output.finish(),
    abandon: () => output.abandon(),
  };
}

interface Run extends Partial<Omit<MediumBackupOptions, 'source'>> {
  readonly session?: Partial<LocalSourceOptions>;
}

async function toFiles(volume: Volume, files: Files, { session, ...options }: Run = {}) {
  const area = new MemoryArea({
    sizeBytes: TRACK_COUNT * TRACK_BYTES,
    trackSizeBytes: TRACK_BYTES,
  });
  const source = new LocalSource({ volume, areas: [area], ...session });
  const saving = backUpToMedium({
    source,
    codec: 'none',
    label: 'tape',
    openOutput: files.output(),
    mediumSizeBytes: MEDIUM_BYTES,
    threshold: { bytes: 1 },
    runBytesMax: 5 * TRACK_BYTES,
    clock: new ManualClock(),
    ...options,
  });
  try {
    return await saving;
  } catch (error) {
    // As the side of the volume does it.
    if (volume.status().sessions.length > 0) source.session.fail(error);
    throw error;
  }
}

async function prepare(t: Test) {
  const test = await makeTestVolume(t, { trackCount: TRACK_COUNT, trackSizeBytes: TRACK_BYTES });
  const files = new Files();
  t.teardown(() => files.remove());
  for (let track = 0; track < TRACK_COUNT; track += 1) await writeLabel(test.volume, track, `o${track}`);
  return { test, files };
}

/** The labels of the volume as media have it. */
async function labelsOnMedia(files: Files, order?: readonly number[]): Promise<string[]> {
  const chain = await MediaChain.open('latest', {
    clock: new ManualClock(),
    openInput: files.input(order === undefined ? undefined : [...order]),
  });
  try {
    const tracks = chain.tracks();
    const labels: string[] = [];
    for (let track = 0; track < TRACK_COUNT; track += 1) labels[track] = tracks.has(track) ? 'missing' : '0';
    for (const _ of chain.readPlan(tracks)) {
      for (const { track, content } of await chain.readFrame()) {
        labels[track] = content === undefined ? '0' : labelOf(content);
      }
    }
    return labels;
  } finally {
    await chain.close();
  }
}

function walkOf(steps: readonly SessionStep[]): string[] {
  return steps.map(({ state, medium }) => `${state} ${medium}`);
}

const round = (medium: number): string[] => [
  `beginning-of-medium ${medium}`,
  `write ${medium}`,
  `end-of-medium ${medium}`,
  `opened ${medium}`,
];

t.test('B10: a set of two and a half media passes beginning, write, end three times', async (t) => {
  const { test, files } = await prepare(t);
  const steps: SessionStep[] = [];
  const outcome = await toFiles(test.volume, files, { onStep: (step) => steps.push(step) });
  t.same(walkOf(steps), ['opened 0', ...[1, 2, 3].flatMap(round)]);
  t.match(outcome, { level: 'full', tracks: TRACK_COUNT, media: 3, label: 'tape', aliases: 0 });
  const labels = await labelsOf(test.volume);
  t.same(await labelsOnMedia(files), labels);
  t.same(await labelsOnMedia(files, [3, 1, 2]), labels, 'in any order');

  const store = await Store.init(join(files.directory, 's'));
  const imported = await importMedia(async () => store, {
    clock: new ManualClock(),
    openInput: files.input([2, 3, 1]),
  });
  t.same(imported.imported, [outcome.set]);
  await writeLabel(test.volume, 7, 'n7');
  const area = new MemoryArea({ sizeBytes: TRACK_BYTES, trackSizeBytes: TRACK_BYTES });
  const source = new LocalSource({ volume: test.volume, areas: [area] });
  const next = await backUp({ source, store, level: 'auto', codec: 'none' });
  t.match(next, { level: 'incremental', base: outcome.point, tracks: 1 }, 'a base, once it is imported');
  t.same(await labelsInStore(store, next.set), await labelsOf(test.volume));
});

t.test('B10: an error on the second medium passes error once', async (t) => {
  const { test, files } = await prepare(t);
  const store = await makeTestStore(t);
  const memory = (): MemoryArea[] => [
    new MemoryArea({ sizeBytes: 8 * TRACK_BYTES, trackSizeBytes: TRACK_BYTES }),
  ];
  await backUp({
    source: new LocalSource({ volume: test.volume, areas: memory() }),
    store,
    level: 'full',
    codec: 'none',
  });
  await writeLabel(test.volume, 3, 'n3');
  const steps: SessionStep[] = [];
  const told: MediaFailure[] = [];
  let isWritten = false;
  const failing = toFiles(test.volume, files, {
    openOutput: files.output({ medium: 2, bytes: 1_100_000 }),
    onStep: (step) => steps.push(step),
    onFailure: async (failure) => {
      told.push(failure);
    },
    session: {
      before: async (step) => {
        if (step !== 'confirm' || isWritten) return;
        isWritten = true;
        await writeLabel(test.volume, 39, 'n39');
      },
    },
  });
  await t.rejects(failing, { code: 'io', message: 'The medium is torn' });
  t.same(walkOf(steps), ['opened 0', ...round(1), 'beginning-of-medium 2', 'write 2', 'error 2', 'opened 2']);
  t.same(told, [{ medium: 2, reason: 'The medium is torn' }]);

  await t.rejects(labelsOnMedia(files), { name: 'CorruptionError', message: /as a whole: the end/ });
  const to = await Store.init(join(files.directory, 's'));
  const options = { clock: new ManualClock(), openInput: files.input([1, 2]) };
  t.same((await importMedia(async () => to, options)).imported, [], 'no visible set');
  t.same(await to.list(), []);

  for (const session of test.volume.status().sessions) t.fail(`session ${session.session} is left`);
  const next = await backUp({
    source: new LocalSource({ volume: test.volume, areas: memory() }),
    store,
    level: 'auto',
    codec: 'none',
  });
  t.match(next, { level: 'incremental', tracks: 2 }, 'the changes of before and during the session');
  t.same(await labelsInStore(store, next.set), await labelsOf(test.volume));
});

t.test('the set is sealed only when its point is durable', async (t) => {
  for (const step of ['mayComplete', 'complete'] as const) {
    const { test, files } = await prepare(t);
    const labels = await labelsOf(test.volume);
    const failing = toFiles(test.volume, files, {
      session: {
        before: (one) => {
          if (one === step) throw new Error(`Failed at ${step}`);
        },
      },
    });
    await t.rejects(failing, { message: `Failed at ${step}` });
    if (step === 'mayComplete') await t.rejects(labelsOnMedia(files), { name: 'CorruptionError' });
    else t.same(await labelsOnMedia(files), labels, 'what the volume did not note is on media all the same');
  }
});

t.test('a session that does not begin leaves no medium open', async (t) => {
  const { test, files } = await prepare(t);
  let abandoned = 0;
  const openOutput: OpenOutput = async (wanted) => {
    const output = await files.output()(wanted);
    return {
      ...tearing(output, Number.POSITIVE_INFINITY),
      abandon: async () => {
        abandoned += 1;
        await output.abandon();
      },
    };
  };
  const failing = toFiles(test.volume, files, {
    openOutput,
    session: {
      before: () => {
        throw new Error('Not now');
      },
    },
  });
  await t.rejects(failing, { message: 'Not now' });
  t.equal(abandoned, 1);
});

t.test('a cancelled session gives its medium up', async (t) => {
  const { test, files } = await prepare(t);
  const abort = new AbortController();
  const steps: SessionStep[] = [];
  const failing = toFiles(test.volume, files, {
    signal: abort.signal,
    onStep: (step) => {
      steps.push(step);
      if (step.medium === 2 && step.state === 'write') abort.abort(new Error('Cancelled'));
    },
  });
  await t.rejects(failing);
  t.equal(walkOf(steps).filter((step) => step === 'error 2').length, 1);
  await t.rejects(labelsOnMedia(files), { name: 'CorruptionError' });
});

t.test('property: media hold the volume of the freeze, whatever is written meanwhile', async () => {
  const write = fc.record({
    at: fc.nat(60),
    track: fc.nat(TRACK_COUNT - 1),
    label: fc.integer({ min: 0, max: 3 }),
  });
  const property = fc.asyncProperty(
    fc.array(fc.tuple(fc.nat(TRACK_COUNT - 1), fc.integer({ min: 0, max: 3 })), { maxLength: 60 }),
    fc.array(write, { maxLength: 30 }),
    fc.record({
      slots: fc.integer({ min: 1, max: 8 }),
      mediumSizeBytes: fc.integer({ min: 1_300_000, max: 4 * MIB }),
      runTracks: fc.integer({ min: 1, max: 6 }),
      pieceBytes: fc.integer({ min: 1, max: 2 * MIB }),
    }),
    async (before, during, { slots, mediumSizeBytes, runTracks, pieceBytes }) => {
      const teardowns: (() => Promise<void>)[] = [];
      const test = await makeTestVolume(
        { teardown: (body) => teardowns.push(body) },
        { trackCount: TRACK_COUNT, trackSizeBytes: TRACK_BYTES },
      );
      const files = new Files();
      try {
        const put = (track: number, label: number): Promise<void> =>
          label === 0
            ? Promise.resolve(test.volume.writeZeroes(track * TRACK_BYTES, TRACK_BYTES, { mayTrim: false }))
            : writeLabel(test.volume, track, `l${label}`);
        for (const [track, label] of before) await put(track, label);
        const wanted = await labelsOf(test.volume);
        const writes: Promise<void>[] = [];
        let step = 0;
        const areas = [new MemoryArea({ sizeBytes: slots * TRACK_BYTES, trackSizeBytes: TRACK_BYTES })];
        await toFiles(test.volume, files, {
          mediumSizeBytes,
          threshold: { bytes: pieceBytes },
          runBytesMax: runTracks * TRACK_BYTES,
          codec: slots % 2 === 0 ? 'zstd' : 'none',
          session: {
            areas,
            before: (name) => {
              if (name === 'begin' || name === 'complete') return;
              for (const { at, track, label } of during) if (at === step) writes.push(put(track, label));
              step += 1;
            },
          },
        });
        await Promise.all(writes);
        const order = Array.from({ length: files.count }, (_, index) => files.count - index);
        const found = await labelsOnMedia(files, order);
        return found.join() === wanted.join();
      } finally {
        files.remove();
        for (const body of teardowns) await body();
      }
    },
  );
  await fc.assert(property, { numRuns: 40 });
});
