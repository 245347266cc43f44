/**
 * Goal: a snapshot is exported as long as it is there, held while it is, withdrawn only where no client has it; a
 * volume that is being rolled back is not exported, nor one that was rolled back in part.
 *
 * Method: real volumes and clients on a socket; the rollbacks are made by the test, or are real ones.
 */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { deferred, MIB, systemClock } from '../base/index.ts';
import { NbdClient, NbdServer } from '../nbd/index.ts';
import { createVolume, Volume } from '../volume/index.ts';
import { createDeviceRegistry } from './devices.ts';
import { snapshotExportName, VolumeExports } from './exports.ts';

const BLOCK = 4096;

interface Exported {
  readonly server: NbdServer;
  readonly exports: VolumeExports;
  readonly volumes: readonly Volume[];
  readonly warnings: readonly string[];
  readonly list: () => Promise<readonly string[]>;
  readonly connect: (name: string) => Promise<NbdClient>;
}

/** Volumes of these names, with a snapshot `old` of the first, all exported on one socket. */
async function start(t: Test, names: readonly string[], readOnly = false): Promise<Exported> {
  const directory = mkdtempSync(join(tmpdir(), 'cowbell-'));
  const volumes: Volume[] = [];
  const registry = createDeviceRegistry();
  for (const name of names) {
    const path = join(directory, name);
    await createVolume(path, { sizeBytes: MIB, trackSizeBytes: 65_536 });
    volumes.push(await Volume.open(path, { registry, clock: systemClock, activity: 'testing' }));
  }
  await volumes[0]?.createSnapshot('old');
  const server = new NbdServer();
  const warnings: string[] = [];
  const exports = new VolumeExports({ server, readOnly, warn: (sentence) => warnings.push(sentence) });
  exports.addVolumes(volumes);
  const socket = join(directory, 'socket');
  await server.listen({ kind: 'unix', path: socket });
  t.teardown(async () => {
    await server.close();
    await exports.close();
    for (const volume of volumes) await volume.close();
    rmSync(directory, { recursive: true, force: true });
  });
  const list = async (): Promise<readonly string[]> =>
    (await NbdClient.list(`nbd+unix:///?socket=${socket}`)).map(({ name }) => name).sort();
  const connect = (name: string): Promise<NbdClient> =>
    NbdClient.connect(`nbd+unix:///${name}?socket=${socket}`);
  return { server, exports, volumes, warnings, list, connect };
}

async function first(client: NbdClient): Promise<string> {
  const block = Buffer.alloc(BLOCK);
  await client.read(block, 0);
  return block.toString('latin1', 0, 1);
}

/** Disconnects, and waits until the server has noticed. */
async function leave(client: NbdClient, server: NbdServer, name: string): Promise<void> {
  await client.disconnect();
  while (server.connectionCountOf(name) > 0) await turn();
}

t.test('snapshots come and go', async (t) => {
  const { server, exports, volumes, list, connect } = await start(t, ['a']);
  const [a] = volumes;
  if (a === undefined) return;
  t.strictSame(await list(), ['a', 'a@old']);
  t.match(a.snapshots(), [{ name: 'old', readers: 1 }], 'its export holds it');
  await a.write(Buffer.alloc(BLOCK, 'n'), 0);
  await a.createSnapshot('new');
  exports.addSnapshot(a, 'new');
  t.strictSame([...exports.snapshotNames], ['a@old', 'a@new']);
  const [oldest, newest] = [await connect('a@old'), await connect('a@new')];
  t.strictSame([await first(oldest), await first(newest)], ['\0', 'n']);
  t.equal(oldest.exportInfo.readOnly, true);

  await t.rejects(exports.removeSnapshot(a, 'old'), {
    code: 'clients-connected',
    message: 'Export a@old has clients connected (1); disconnect them first',
    details: { exportName: 'a@old', count: 1 },
  });
  t.equal(await first(oldest), '\0', 'and is none the worse');
  await leave(oldest, server, 'a@old');
  await exports.removeSnapshot(a, 'old');
  t.strictSame(await list(), ['a', 'a@new']);
  t.equal(a.snapshots()[0]?.readers, 0);
  await exports.removeSnapshot(a, 'old');

  await exports.dropSnapshot(a, 'new');
  await t.rejects(first(newest), 'who reads a dropped one is cut off');
  t.strictSame(await list(), ['a']);
});

t.test('a snapshot that is gone is not exported, and that is said', async (t) => {
  const { exports, volumes, warnings, list } = await start(t, ['a']);
  const [a] = volumes;
  if (a === undefined) return;
  exports.addSnapshot(a, 'gone');
  exports.addSnapshot(a, 'old');
  t.match(warnings, [
    /^Snapshot gone of a is not exported: /,
    /^Snapshot old of a is not exported: .*exists/,
  ]);
  t.strictSame(await list(), ['a', 'a@old']);
  t.equal(a.snapshots()[0]?.readers, 1, 'what failed holds nothing');
});

t.test('one of the same name comes while the dropped one is still being withdrawn', async (t) => {
  const { exports, volumes, list, connect } = await start(t, ['a']);
  const [a] = volumes;
  if (a === undefined) return;
  const client = await connect('a@old');
  const dropped = exports.dropSnapshot(a, 'old');
  exports.addSnapshot(a, 'old');
  await dropped;
  t.strictSame(await list(), ['a', 'a@old']);
  t.strictSame([...exports.snapshotNames], ['a@old']);
  await client.disconnect().catch(() => undefined);
  const again = await connect('a@old');
  t.equal(await first(again), '\0', 'the new one was not closed with the old one');
  await again.disconnect();
});

t.test('a volume with the name of a snapshot of another wins, and is not taken for it', async (t) => {
  const { exports, volumes, warnings, list, connect } = await start(t, ['a', 'a@old', 'a@other']);
  const [a, named] = volumes;
  if (a === undefined || named === undefined) return;
  t.strictSame(await list(), ['a', 'a@old', 'a@other']);
  t.match(warnings, [/^Snapshot old of a is not exported: /]);
  t.strictSame([...exports.snapshotNames], []);
  const belongs = ['a', 'a@old', 'a@other'].map((name) => exports.belongsTo(name, ['a']));
  t.strictSame(belongs, [true, false, false], 'a listener for a alone does not offer the others');
  const client = await connect('a@old');
  t.equal(client.exportInfo.readOnly, false);
  await exports.removeSnapshot(a, 'old');
  await exports.dropSnapshot(a, 'old');
  await client.write(Buffer.alloc(BLOCK, 'x'), 0);
  await client.disconnect();
  t.strictSame(await list(), ['a', 'a@old', 'a@other'], 'and goes with no snapshot');
});

t.test('names of exports and the volumes they belong to', async (t) => {
  const { exports } = await start(t, ['a', 'ab']);
  t.equal(snapshotExportName('a', 'b'), 'a@b');
  t.equal(exports.belongsTo('a@old', ['a']), true);
  t.equal(exports.belongsTo('a@old', ['ab']), false);
  t.equal(exports.belongsTo('ab', ['a']), false);
  t.equal(exports.belongsTo('a@unknown', ['a']), false);
});

t.test('without: no client gets in while the volume is rolled back', async (t) => {
  const { server, exports, volumes, list, connect } = await start(t, ['a']);
  const [a] = volumes;
  if (a === undefined) return;
  const client = await connect('a');
  await t.rejects(
    exports.without(a, async () => t.fail('ran under a client')),
    { code: 'clients-connected' },
  );
  await client.write(Buffer.alloc(BLOCK, 'n'), 0);
  await leave(client, server, 'a');
  const held = deferred();
  const rolledBack = exports.without(a, async () => {
    await held.promise;
    return a.rollBack('old');
  });
  t.strictSame(await list(), ['a@old']);
  await t.rejects(connect('a'), { code: 'export-unknown' });
  const snapshot = await connect('a@old');
  held.resolve();
  t.equal(await rolledBack, 1);
  t.equal(await first(snapshot), '\0', 'clients of snapshots may stay');
  await snapshot.disconnect();
  const back = await connect('a');
  t.equal(await first(back), '\0');
  await back.disconnect();
});

t.test('without: where nothing was begun the export comes back, where it was it does not', async (t) => {
  const { exports, volumes, list } = await start(t, ['a']);
  const [a] = volumes;
  if (a === undefined) return;
  await t.rejects(
    exports.without(a, () => a.rollBack('misspelt')),
    { code: 'unknown-snapshot' },
  );
  t.strictSame(await list(), ['a', 'a@old']);

  await a.write(Buffer.alloc(BLOCK, 'n'), 0);
  const failure = new Error('in the middle');
  const failing = exports.without(a, () =>
    a.rollBack('old', () => {
      throw failure;
    }),
  );
  await t.rejects(failing, failure);
  t.strictSame(await list(), ['a@old']);
  await exports.without(a, () => a.rollBack('old'));
  t.strictSame(await list(), ['a', 'a@old'], 'it was done again, and is whole');
});

t.test('a read-only server exports volumes read-only', async (t) => {
  const { connect } = await start(t, ['a'], true);
  const client = await connect('a');
  t.equal(client.exportInfo.readOnly, true);
  await client.disconnect();
});
