/**
 * Goal: `volume check` finds what is wrong with the files and records of snapshots, says which are lost by it, and lets
 * a volume out of a rollback that a failed flush interrupted.
 * Method: a real volume with two snapshots that keep some tracks each, harmed by hand.
 */

import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { DeviceRegistry, type FaultyDevice } from '../device/index.ts';
import { openLmdb } from '../records/index.ts';
import { labelsOf, makeTestVolume, writeLabel } from '../sim/index.ts';
import { checkVolume, createVolume, Volume } from './index.ts';

const TRACK = 4096;
const registry = new DeviceRegistry();

function openVolume(directory: string): Promise<Volume> {
  return Volume.open(directory, { registry, activity: 'testing' });
}

/** Tracks 1 and 2 replaced after `older`, 2 and 3 after `newer`. */
async function makeVolume(t: Test): Promise<string> {
  const parent = mkdtempSync(join(tmpdir(), 'cowbell-check-'));
  t.teardown(() => rmSync(parent, { recursive: true, force: true }));
  const directory = join(parent, 'v');
  await createVolume(directory, { sizeBytes: 8 * TRACK, trackSizeBytes: TRACK });
  const volume = await openVolume(directory);
  for (const track of [1, 2, 3]) await writeLabel(volume, track, 'a');
  await volume.createSnapshot('older');
  for (const track of [1, 2]) await writeLabel(volume, track, 'b');
  await volume.createSnapshot('newer');
  for (const track of [2, 3]) await writeLabel(volume, track, 'c');
  await volume.close();
  return directory;
}

async function lines(directory: string, dryRun = false): Promise<string[]> {
  const { findings } = await checkVolume(directory, { registry, dryRun });
  return findings.map(({ where, what, repaired }) => `${where}: ${what}${repaired ? ' (done)' : ''}`);
}

/** The file of a snapshot, by name. */
async function fileOf(directory: string, name: string): Promise<string> {
  const file = openLmdb(join(directory, 'state.mdb'), { readOnly: true });
  const records = Array.from(file.database('snapshots').range(), ({ value }) => value.toString());
  await file.close();
  const record = records.find((one) => one.includes(`"name":"${name}"`)) ?? '{}';
  const { storeId }: { storeId: string } = JSON.parse(record);
  return join(directory, 'snapshots', `${storeId}.tracks`);
}

t.test('sound snapshots have nothing to tell', async (t) => {
  const directory = await makeVolume(t);
  t.same(await lines(directory, true), []);
  t.same(await lines(directory), []);
});

t.test('damaged content is named by its track', async (t) => {
  const directory = await makeVolume(t);
  const path = await fileOf(directory, 'older');
  const bytes = readFileSync(path);
  // The first batch has one track: its content is behind the page of the file and that of the batch.
  bytes[2 * 4096 + 100] = (bytes[2 * 4096 + 100] ?? 0) ^ 1;
  writeFileSync(path, bytes);
  for (const dryRun of [true, false])
    t.same(await lines(directory, dryRun), ['snapshot older: track 1 of its file fails its checksum']);
});

t.test('a missing file takes the older snapshots with it, and a stray one goes', async (t) => {
  const directory = await makeVolume(t);
  rmSync(await fileOf(directory, 'newer'));
  const stray = `${'a'.repeat(32)}.tracks`;
  writeFileSync(join(directory, 'snapshots', stray), '');
  const found = await lines(directory);
  t.match(found, [
    /^snapshot newer: Snapshot file .* is missing$/,
    `snapshots/${stray}: no snapshot has the file (done)`,
    /^snapshot older: Snapshot file .* is missing$/,
  ]);
  t.notOk(readdirSync(join(directory, 'snapshots')).includes(stray));
  const volume = await openVolume(directory);
  for (const name of ['older', 'newer']) await volume.deleteSnapshot(name);
  await volume.close();
  t.same(await lines(directory), [], 'deleting them is the way out');
});

t.test('a snapshot whose record is lost is shown, and the older ones need what it had', async (t) => {
  const directory = await makeVolume(t);
  const path = join(directory, 'state.mdb');
  const bytes = readFileSync(path);
  const name = Buffer.from('"name":"newer"');
  for (let at = bytes.indexOf(name); at >= 0; at = bytes.indexOf(name, at + 1)) bytes[at + 9] = 0x58;
  writeFileSync(path, bytes);
  t.match(await lines(directory, true), [
    /^state.mdb snapshot 2: the record is damaged$/,
    /^snapshot lost-2: the record of a snapshot was damaged$/,
    /^snapshot older: the record of a snapshot was damaged$/,
    /^snapshots\/.*: no snapshot has the file$/,
  ]);
  t.equal((await lines(directory)).length, 4);
  const volume = await openVolume(directory);
  t.equal((await labelsOf(volume)).join(' '), '0 b c c 0 0 0 0', 'the volume is none the worse');
  t.throws(() => volume.openSnapshot('older'), { code: 'snapshot-damaged' });
  for (const one of ['older', 'lost-2']) await volume.deleteSnapshot(one);
  await volume.close();
  t.same(await lines(directory), []);
});

t.test('a rollback that a failed flush interrupted is finished by a check', async (t) => {
  const test = await makeTestVolume(t, { trackCount: 8 });
  await writeLabel(test.volume, 1, 'a');
  await test.volume.createSnapshot('s');
  await writeLabel(test.volume, 1, 'b');
  await test.volume.flush();
  test.home.fail({ kind: 'flush', nth: 1 });
  await t.rejects(test.volume.rollBack('s'));
  await test.volume.close();
  const kept = { open: async () => new Proxy(test.home, { get: keepOpen }) };
  const { findings, clearedFailure } = await checkVolume(test.directory, { registry: kept });
  t.match(findings, [{ what: /track 1 may not hold/, repaired: true }]);
  t.match(clearedFailure, /Injected/);
  await test.reopen();
  t.equal((await labelsOf(test.volume))[1], 'a');
});

function keepOpen(target: FaultyDevice, name: string | symbol): unknown {
  if (name === 'close') return async () => undefined;
  const value: unknown = Reflect.get(target, name, target);
  return typeof value === 'function' ? value.bind(target) : value;
}
