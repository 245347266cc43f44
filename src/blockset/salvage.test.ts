/**
 * Goal: of a damaged chain everything that is whole is read, everything that is not is named as lost, and no older
 * set ever speaks for a track that a newer one may have had.
 *
 * Method: real stores with one kind of damage each: a byte of a frame, of the order, of the hashes, of the list of
 * tracks, of the seal; files of lanes and of sets that are missing. What a salvage says and reads is compared with
 * what was written. Then random chains with random damage against a map of tracks.
 */

import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import { CorruptionError, present } from '../base/index.ts';
import { digest } from '../records/index.ts';
import { TrackSet } from '../tracks/index.ts';
import type { ChainView } from './chain-view.ts';
import { LaneWriter } from './lane-writer.ts';
import {
  labelled,
  labelOf,
  newSet,
  saveSet,
  scratch,
  TRACK_BYTES,
  type Tracks,
  withoutSyncs,
} from './model.fixture.ts';
import { encodeRuns, GROUP_TRACKS } from './set-format.ts';
import { type NewSet, Store } from './store.ts';

const TRACKS = 16;

/** Changes one byte of each place in the file that holds `pattern`: pages that are out of use may hold it too. */
function damage(path: string, pattern: Buffer | string): void {
  const bytes = readFileSync(path);
  let place = bytes.indexOf(pattern);
  if (place === -1) throw new Error(`${path} does not hold the pattern`);
  for (; place !== -1; place = bytes.indexOf(pattern, place + pattern.length)) {
    bytes[place + pattern.length - 1] = (bytes[place + pattern.length - 1] ?? 0) ^ 0x40;
  }
  writeFileSync(path, bytes);
}

/** Labels of all tracks: `-` for a lost one, `!` for one that turns out damaged, `0` for zeroes. */
function read(chain: ChainView): string {
  const lost = chain.lost();
  const found = Array.from({ length: chain.trackCount }, (_, track): string => (lost.has(track) ? '-' : '0'));
  for (const entry of chain.readPlan(chain.tracks())) {
    for (const track of entry.tracks) {
      try {
        found[track] = labelOf(chain.readFrame({ ...entry, tracks: [track] })[0]?.content);
      } catch (error) {
        if (!(error instanceof CorruptionError)) throw error;
        found[track] = '!';
      }
    }
  }
  return found.join(' ');
}

async function salvaged(store: Store, id: string): Promise<{ labels: string; findings: readonly string[] }> {
  const chain = await store.salvage(id);
  try {
    return { labels: read(chain), findings: chain.findings };
  } finally {
    await chain.close();
  }
}

/** A full set with two lanes, even tracks in lane 0 and odd ones in lane 1; tracks 4 and 5 are zeroes. */
async function twoLanes(store: Store, options: { count?: number; directory?: string } = {}): Promise<string> {
  const { count = TRACKS, directory = '' } = options;
  const { assembly, lanes } = await store.beginSet(
    newSet({ point: 'p1' }),
    { count: 2, directories: directory === '' ? [] : [directory] },
    async (parts) => parts.map((part) => new LaneWriter(part)),
  );
  for (let track = 0; track < count; track += 1) {
    const lane = lanes[track % 2];
    if (track === 4 || track === 5) lane?.addZero(track);
    else lane?.add(track, labelled(`a${track}`));
  }
  await assembly.finish({ bytesRead: 0, diverted: 0, unchanged: 0 });
  return (await assembly.seal()).header.id;
}

/** As `saveSet`, each track in a frame of its own. */
async function saveFramed(store: Store, fields: Partial<NewSet>, tracks: Tracks): Promise<string> {
  const writer = await store.createSet(newSet(fields));
  for (const [track, label] of tracks) {
    if (label === null) writer.addZero(track);
    else writer.add(track, labelled(label));
    writer.flush();
  }
  await writer.finish({ bytesRead: 0, diverted: 0, unchanged: 0 });
  return (await writer.seal()).header.id;
}

t.test('an undamaged chain is read as it is', async (t) => {
  withoutSyncs(t);
  const store = await Store.init(join(scratch(t), 's'));
  await saveSet(store, { point: 'p1' }, [
    [0, 'a'],
    [1, 'b'],
  ]);
  const { header } = await saveSet(store, { base: 'p1', point: 'p2' }, [[1, 'c']]);
  const { labels, findings } = await salvaged(store, header.id);
  t.equal(labels, `a c${' 0'.repeat(14)}`);
  t.same(findings, []);
});

t.test('B13: one lane is missing: it is named, and the tracks of the other are read', async (t) => {
  withoutSyncs(t);
  const store = await Store.init(join(scratch(t), 's'));
  for (const lane of [0, 1]) {
    const id = await twoLanes(store);
    const path = present((await store.find(id)).lanePaths[lane], 'Two lanes');
    rmSync(path);
    await t.rejects(store.chain(id), { name: 'CorruptionError' });
    const { labels, findings } = await salvaged(store, id);
    const wanted = Array.from({ length: TRACKS }, (_, track) => {
      if (track % 2 === lane) return '-';
      return track === 4 || track === 5 ? '0' : `a${track}`;
    });
    t.equal(labels, wanted.join(' '), `lane ${lane}`);
    t.match(findings, [new RegExp(`lacks lane ${lane}: there is no ${path}`)]);
  }
});

t.test('a lane on another disk is found by what any lane says, and by the catalog', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  const store = await Store.init(join(directory, 's'));
  const id = await twoLanes(store, { directory: join(directory, 'elsewhere') });
  const set = await store.find(id);
  t.notMatch(set.lanePaths[1], /\/s\/sets\//);
  rmSync(set.path);
  const { labels } = await salvaged(store, id);
  t.equal(labels, '- a1 - a3 - 0 - a7 - a9 - a11 - a13 - a15');
});

t.test('where the set does not have all tracks, each that is not accounted for may be lost', async (t) => {
  withoutSyncs(t);
  const store = await Store.init(join(scratch(t), 's'));
  const id = await twoLanes(store, { count: 8 });
  rmSync(present((await store.find(id)).lanePaths[1], 'A second lane'));
  const { labels, findings } = await salvaged(store, id);
  t.equal(labels, `a0 - a2 - 0 - a6 - ${'- '.repeat(8).trim()}`);
  t.match(findings.at(-1), /^Of the 8 tracks .* 4 are accounted for, the others may be any$/);
});

t.test('one damaged value of a set takes no more than what it holds', async (t) => {
  withoutSyncs(t);
  const order = encodeRuns([
    { first: GROUP_TRACKS, count: 1, frame: 2, position: 0 },
    { first: GROUP_TRACKS + 1, count: 1, frame: 3, position: 0 },
  ]);
  const tracks: Tracks = [0, 1, 2, 3, 4, 5].map((index) => [
    Math.floor(index / 2) * GROUP_TRACKS + (index % 2),
    `a${index}`,
  ]);
  const cases = [
    { name: 'the content', pattern: '<a3><a3>', labels: 'a0 a1 a2 ! a4 a5', whole: true },
    { name: 'the order of a group', pattern: order, labels: 'a0 a1 - - a4 a5' },
    { name: 'the hashes of a group', pattern: digest(labelled('a0')), labels: '- - a2 a3 a4 a5' },
    {
      name: 'the list of tracks',
      pattern: TrackSet.of(tracks.map(([track]) => track)).serialize(),
      labels: 'a0 a1 a2 a3 a4 a5',
    },
    { name: 'the header', pattern: '"volumeName":"disk"', labels: 'Nothing' },
  ];
  for (const { name, pattern, labels, whole } of cases) {
    const store = await Store.init(join(scratch(t), 's'));
    const id = await saveFramed(store, { point: 'p1', sizeBytes: 3 * GROUP_TRACKS * TRACK_BYTES }, tracks);
    damage((await store.find(id)).path, pattern);
    if (labels === 'Nothing') {
      await t.rejects(store.salvage(id), /^Nothing of block set .* can be read: /, name);
      continue;
    }
    if (whole !== true) await t.rejects(store.chain(id), { name: 'CorruptionError' }, name);
    const { labels: all, findings } = await salvaged(store, id);
    const found = all.split(' ');
    t.equal(tracks.map(([track]) => found[track]).join(' '), labels, name);
    const others = found.filter((_, track) => !tracks.some(([one]) => one === track));
    t.same([...new Set(others)], ['0'], `${name}: every other track is known to be zero`);
    t.equal(findings.length > 0, whole !== true, name);
  }
});

t.test('a track whose newest content is lost is not replaced by older content', async (t) => {
  withoutSyncs(t);
  const store = await Store.init(join(scratch(t), 's'));
  await saveSet(
    store,
    { point: 'p1' },
    Array.from({ length: TRACKS }, (_, track) => [track, `a${track}`] as const),
  );
  const middle = await saveFramed(store, { base: 'p1', point: 'p2' }, [
    [1, 'b1'],
    [2, 'b2'],
  ]);
  const id = await saveFramed(store, { base: 'p2', point: 'p3' }, [
    [2, 'c2'],
    [3, 'c3'],
  ]);
  damage((await store.find(id)).path, '<c3><c3>');
  const rest = Array.from({ length: 12 }, (_, index) => `a${index + 4}`).join(' ');
  t.equal((await salvaged(store, id)).labels, `a0 b1 c2 ! ${rest}`);
  rmSync((await store.find(middle)).path);
  const { labels, findings } = await salvaged(store, id);
  t.equal(labels, `- - c2 ! ${'- '.repeat(12).trim()}`, 'nothing of the full set counts');
  t.match(findings.join('\n'), /builds on point p2, of which nothing can be read: what it had is lost/);
});

t.test('a set that holds the same point stands in for a damaged one', async (t) => {
  withoutSyncs(t);
  const store = await Store.init(join(scratch(t), 's'));
  const full: Tracks = [
    [0, 'a'],
    [1, 'b'],
  ];
  const { header: first } = await saveSet(store, { point: 'p1' }, full);
  const { header: second } = await saveSet(store, { point: 'p1' }, full);
  const { header } = await saveSet(store, { base: 'p1', point: 'p2' }, [[1, 'c']]);
  for (const id of [first.id, second.id]) {
    const path = (await store.find(id)).path;
    const bytes = readFileSync(path);
    rmSync(path);
    t.equal((await salvaged(store, header.id)).labels, `a c${' 0'.repeat(14)}`);
    writeFileSync(path, bytes);
  }
});

t.test('nothing of a set, and no such set', async (t) => {
  withoutSyncs(t);
  const store = await Store.init(join(scratch(t), 's'));
  const { header } = await saveSet(store, { point: 'p1' }, [[0, 'a']]);
  rmSync((await store.find(header.id)).path);
  await t.rejects(store.salvage(header.id), { name: 'CorruptionError', message: /^Nothing of block set/ });
  await t.rejects(store.salvage('x'), { code: 'unknown-set' });
});

t.test('property: random chains, random damage', async (t) => {
  withoutSyncs(t);
  const sets = fc.array(fc.dictionary(fc.nat(TRACKS - 1).map(String), fc.boolean()), {
    minLength: 1,
    maxLength: 4,
  });
  const directory = scratch(t);
  let runs = 0;
  await fc.assert(
    fc.asyncProperty(sets, fc.nat(), fc.nat(), async (chain, which, byte) => {
      runs += 1;
      const store = await Store.init(join(directory, `s${runs}`));
      const ids: string[] = [];
      for (const [index, tracks] of chain.entries()) {
        const fields = { point: `p${index}`, ...(index === 0 ? {} : { base: `p${index - 1}` }) };
        const content = Object.entries(tracks).map(([track, isZero]): Tracks[number] => {
          return [Number(track), isZero ? null : `${index}.${track}`];
        });
        ids.push(await saveFramed(store, fields, content));
      }
      const newest = present(ids.at(-1), 'A chain has a set');
      const expected = Array.from({ length: TRACKS }, (_, track) => {
        const index = chain.findLastIndex((tracks) => String(track) in tracks);
        if (index === -1 || chain[index]?.[String(track)] === true) return '0';
        return `${index}.${track}`;
      });
      const { path } = await store.find(present(ids[which % ids.length], 'A set'));
      const bytes = readFileSync(path);
      bytes[byte % bytes.length] = (bytes[byte % bytes.length] ?? 0) ^ 0x01;
      writeFileSync(path, bytes);
      let labels: string[];
      try {
        labels = (await salvaged(store, newest)).labels.split(' ');
      } catch (error) {
        // The newest set itself does not open.
        t.ok(error instanceof CorruptionError && which % ids.length === ids.length - 1);
        return;
      } finally {
        rmSync(join(directory, `s${runs}`), { recursive: true });
      }
      const wrong = labels.filter(
        (label, track) => label !== '-' && label !== '!' && label !== expected[track],
      );
      t.same(wrong, [], 'what is read is what was written last');
    }),
    { numRuns: 60 },
  );
  t.notOk(existsSync(join(directory, 's1')));
});
