/**
 * Goal: `EXAMPLES.md` B10 on real writings and readings. The states themselves are tested in
 * `session-states.test.ts`.
 *
 * Method: a set that takes two and a half media; media that are torn while they are written or read; media that
 * say by themselves that they are full. The log of a store is read back. That a session goes on when the command
 * that started it has gone away belongs to the server's sessions, not to this room.
 */

import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { present } from '../base/index.ts';
import { Store } from '../blockset/index.ts';
import { importMedia, incompleteError } from './import.ts';
import { logMedia, mediaOfSet, recordMedia } from './media-record.ts';
import type { OpenInput } from './media-reading.ts';
import type { MediaFailure } from './media-writing.ts';
import {
  bytesInput,
  clock,
  contentOf,
  entriesOf,
  exportAll,
  labelled,
  MemoryMedia,
  saveSet,
  scratch,
  TRACK_BYTES,
  withoutSyncs,
} from './media.fixture.ts';
import type { SessionStep } from './session-states.ts';

/** A set of 25 frames of 4 KiB, of which a medium of `MEDIUM_BYTES` takes 12 or so. */
async function longSet(path: string): Promise<{ store: Store; id: string }> {
  const store = await Store.init(path);
  const tracks = Array.from({ length: 25 }, (_, track) => [track, labelled(`t${track}`)] as const);
  const { header } = await saveSet(store, {}, tracks, { perFrame: 1 });
  return { store, id: header.id };
}

const MEDIUM_BYTES = 64 * 1024;
const THRESHOLD = { bytes: 3 * TRACK_BYTES };

/** The steps as `state medium`, the times left out. */
function walkOf(steps: readonly SessionStep[]): string[] {
  return steps.map(({ state, medium }) => `${state} ${medium}`);
}

const round = (medium: number, transfer: string): string[] => [
  `beginning-of-medium ${medium}`,
  `${transfer} ${medium}`,
  `end-of-medium ${medium}`,
  `opened ${medium}`,
];

t.test('B10: a set of two and a half media passes beginning, write, end three times', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  const { store, id } = await longSet(join(directory, 'from'));
  const media = new MemoryMedia();
  const steps: SessionStep[] = [];
  const records: string[] = [];
  await exportAll(store, media, {
    mediumSizeBytes: MEDIUM_BYTES,
    threshold: THRESHOLD,
    onStep: (step) => steps.push(step),
    onMedium: async (catalog) => {
      await recordMedia(store.path, catalog);
      const [held] = await mediaOfSet(store.path, id);
      records.push(`${held?.media.join(' ')} ${held?.isWhole}`);
    },
  });
  t.same(walkOf(steps), ['opened 0', ...[1, 2, 3].flatMap((medium) => round(medium, 'write'))]);
  t.equal(media.media.length, 3);
  for (const medium of media.media)
    t.ok(medium.length <= MEDIUM_BYTES, `a medium has ${medium.length} bytes`);
  t.ok(present(media.media[2], 'The third').length < 0.75 * MEDIUM_BYTES, 'the third is not full');
  t.same(records, ['1 false', '1 2 false', '1 2 3 true'], 'the store knows after each medium');

  const to = await Store.init(join(directory, 'to'));
  const read: SessionStep[] = [];
  const result = await importMedia(async () => to, {
    clock,
    openInput: media.input(),
    onStep: (step) => read.push(step),
  });
  t.same(result.imported, [id]);
  t.same(walkOf(read), ['opened 0', ...[1, 2, 3].flatMap((medium) => round(medium, 'read'))]);
});

t.test('B10: an error while the second medium is written passes error once', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  const { store } = await longSet(join(directory, 'from'));
  const media = new MemoryMedia();
  const steps: SessionStep[] = [];
  const told: MediaFailure[] = [];
  const writing = exportAll(store, media, {
    mediumSizeBytes: MEDIUM_BYTES,
    threshold: THRESHOLD,
    openOutput: media.output({ failAt: { medium: 2, bytes: 30_000 } }),
    onStep: (step) => steps.push(step),
    onFailure: async (failure) => {
      told.push(failure);
      await logMedia(store.path, { atMs: clock.now(), action: 'export', label: 'tape', ...failure });
    },
  });
  await t.rejects(writing, /The medium is torn/);
  t.same(walkOf(steps), [
    'opened 0',
    ...round(1, 'write'),
    'beginning-of-medium 2',
    'write 2',
    'error 2',
    'opened 2',
  ]);
  t.same(told, [{ medium: 2, reason: 'The medium is torn' }]);
  t.equal(
    readFileSync(join(store.path, 'media', 'log'), 'utf8')
      .trim()
      .split('\n').length,
    1,
    'one log entry',
  );
  t.same(media.abandoned, [2]);

  const to = await Store.init(join(directory, 'to'));
  const result = await importMedia(async () => to, { clock, openInput: media.input() });
  t.same(result.imported, []);
  t.same(await to.list(), [], 'what was on the way is no visible set');
  t.same(readdirSync(join(to.path, 'sets')), [], 'and leaves nothing');
});

t.test('B10: an error while the second medium is read passes error once', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  const { store, id } = await longSet(join(directory, 'from'));
  const media = new MemoryMedia();
  await exportAll(store, media, { mediumSizeBytes: MEDIUM_BYTES, threshold: THRESHOLD });
  const whole = media.input();
  let opened = 0;
  const torn: OpenInput = async (wanted) => {
    const input = await whole(wanted);
    opened += 1;
    return opened === 2 ? bytesInput('medium 2', present(media.media[1], 'The second'), 30_000) : input;
  };
  const steps: SessionStep[] = [];
  const told: MediaFailure[] = [];
  const to = await Store.init(join(directory, 'to'));
  const result = await importMedia(async () => to, {
    clock,
    openInput: torn,
    onStep: (step) => steps.push(step),
    onFailure: async (failure) => {
      told.push(failure);
      await logMedia(to.path, { atMs: clock.now(), action: 'import', label: 'tape', ...failure });
    },
  });
  t.same(walkOf(steps), [
    'opened 0',
    ...round(1, 'read'),
    'beginning-of-medium 2',
    'read 2',
    'error 2',
    'opened 2',
    ...round(3, 'read'),
  ]);
  t.same(result.imported, []);
  t.match(result.findings, [/Reading medium medium 2 failed: The medium is torn/]);
  t.match(incompleteError(result), { name: 'CorruptionError' });
  t.equal(told.length, 1);
  t.equal(
    readFileSync(join(to.path, 'media', 'log'), 'utf8')
      .trim()
      .split('\n').length,
    1,
    'one log entry',
  );
  t.same(await to.list(), [], 'no visible set');
  t.equal((await store.list())[0]?.id, id, 'the source is as it was');
});

t.test('the end of a medium that says so by itself ends it as a given size does', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  const { store, id } = await longSet(join(directory, 'from'));
  for (const blockBytes of [1, 512, 10_000, 20_000]) {
    const media = new MemoryMedia();
    const steps: SessionStep[] = [];
    const { catalog } = await exportAll(store, media, {
      threshold: THRESHOLD,
      openOutput: media.output({ capacityBytes: 60_000, blockBytes }),
      onStep: (step) => steps.push(step),
    });
    const count = media.media.length;
    t.ok(count >= 3, `${count} media in blocks of ${blockBytes}`);
    t.same(walkOf(steps), [
      'opened 0',
      ...Array.from({ length: count }, (_, index) => round(index + 1, 'write')).flat(),
    ]);
    t.equal(catalog.media.length, count);
    const frames = catalog.media.flatMap(({ sets }) => sets).reduce((sum, set) => sum + set.frames, 0);
    t.equal(frames, 25, 'each frame is said to be on one medium');
    const kinds = entriesOf(present(media.media[0], 'The first')).map(({ kind }) => kind);
    t.notOk(kinds.includes('trailer'), 'a medium that was full has no end');
    const to = await Store.init(join(directory, `to-${blockBytes}`));
    const order = media.media.map((_, index) => count - index);
    const result = await importMedia(async () => to, { clock, openInput: media.input(order) });
    t.same(result.imported, [id]);
    t.equal(incompleteError(result), undefined);
    t.ok((await contentOf(to, id)).equals(await contentOf(store, id)));
  }
});

t.test('a medium that cannot hold its headers and one record is refused', async (t) => {
  withoutSyncs(t);
  const { store } = await longSet(join(scratch(t), 'from'));
  const small = exportAll(store, new MemoryMedia(), { mediumSizeBytes: 12_000 });
  await t.rejects(small, { code: 'medium-too-small' });
  const held = new MemoryMedia();
  const holding = exportAll(store, held, {
    threshold: THRESHOLD,
    openOutput: held.output({ capacityBytes: 20_000, blockBytes: 16_000 }),
  });
  await t.rejects(holding, { code: 'medium-too-small' }, 'a medium that keeps no piece ends the writing');
  const media = new MemoryMedia();
  const full = exportAll(store, media, { openOutput: media.output({ capacityBytes: 2_000 }) });
  await t.rejects(full, { code: 'medium-too-small' });
});
