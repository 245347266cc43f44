/**
 * Goal: all listeners of a serving process are one server: each offers what it should, and a client that
 * loses its connection on one socket and comes back on another is safe from its own stale writes.
 *
 * Method: volumes whose home is an NBD export of this process, so that the test holds the home's writes; the
 * clients of the room `nbd`.
 */

import { existsSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { deferred, MIB, systemClock } from '../base/index.ts';
import { type BlockDevice, formatNbdUri, NbdClient, NbdServer } from '../nbd/index.ts';
import { createVolume, Volume } from '../volume/index.ts';
import { ControlClient } from './control-client.ts';
import { createDeviceRegistry } from './devices.ts';
import { type FurtherListener, Serving } from './serving.ts';

const BLOCK = 4096;

/** A home that tells of each write and flush when it begins, and lets writes of the first block wait. */
class HeldHome implements BlockDevice {
  readonly sizeBytes = MIB;
  readonly blockSizeBytes = 512;
  readonly capabilities = { readOnly: false, trim: false, extents: false };
  readonly description = 'a held home';
  readonly bytes = Buffer.alloc(MIB);
  readonly begun: string[] = [];
  readonly firstWrite = deferred();
  readonly release = deferred();

  async read(target: Buffer, offsetBytes: number): Promise<void> {
    this.bytes.copy(target, 0, offsetBytes);
  }
  async write(source: Buffer, offsetBytes: number): Promise<void> {
    const bytes = Buffer.from(source);
    this.begun.push(`${bytes.toString('latin1', 0, 1)} at ${offsetBytes}`);
    if (offsetBytes === 0) {
      this.firstWrite.resolve();
      await this.release.promise;
    }
    bytes.copy(this.bytes, offsetBytes);
  }
  async writeZeroes(): Promise<void> {}
  async trim(): Promise<void> {}
  async flush(): Promise<void> {
    this.begun.push('flush');
  }
  async extents(): Promise<never> {
    throw new Error('A device without extents was asked for them');
  }
  async close(): Promise<void> {}
}

function makeDirectory(t: Test): (name: string) => string {
  const directory = mkdtempSync(join(tmpdir(), 'cowbell-'));
  t.teardown(() => rmSync(directory, { recursive: true, force: true }));
  return (name) => join(directory, name);
}

async function start(t: Test, volumes: readonly string[], listeners: readonly FurtherListener[]) {
  const serving = await Serving.start({
    volumes,
    listeners,
    readOnly: false,
    clock: systemClock,
    workerPath: '',
    warn: (sentence) => t.comment(sentence),
  });
  t.teardown(() => serving.stop());
  return serving;
}

t.test('a write that a client left behind on one socket is fenced on another', async (t) => {
  const at = makeDirectory(t);
  const device = new HeldHome();
  const homes = new NbdServer({
    exports: [{ name: 'home', description: '', device, readOnly: false, multiConn: true }],
  });
  t.teardown(() => homes.close());
  const transport = await homes.listen({ kind: 'unix', path: at('home.sock') });
  const home = formatNbdUri({ transport, exportName: 'home' });
  await createVolume(at('vol'), { sizeBytes: MIB, trackSizeBytes: 65_536, home });
  const serving = await start(t, [at('vol')], [{ place: { kind: 'tcp', host: '127.0.0.1', port: 0 } }]);
  const [own = '', further = ''] = serving.uris;

  const leaving = await NbdClient.connect(own);
  const stale = leaving.write(Buffer.alloc(BLOCK, 'A'), 0);
  await device.firstWrite.promise;
  const gone = leaving.disconnect();
  await t.rejects(stale, { code: 'disconnected' });

  const returned = await NbdClient.connect(further);
  const retried = returned.write(Buffer.alloc(BLOCK, 'B'), 0);
  const flushed = returned.flush();
  // These are read after the two above, so when they are answered the two have been considered.
  for (const index of [1, 2, 3]) await returned.write(Buffer.alloc(BLOCK, 'C'), index * BLOCK);
  const begun = ['A at 0', `C at ${BLOCK}`, `C at ${2 * BLOCK}`, `C at ${3 * BLOCK}`];
  t.strictSame(device.begun, begun, 'the overlapping write and the flush are held');
  device.release.resolve();
  await Promise.all([retried, flushed, gone]);
  t.equal(device.bytes.toString('latin1', 0, 1), 'B');
  t.strictSame(device.begun.slice(begun.length).sort(), ['B at 0', 'flush']);
  await returned.disconnect();
  await serving.stop();
});

t.test('listeners serve all volumes, or those they are restricted to', async (t) => {
  const at = makeDirectory(t);
  const volumes = ['a', 'b', 'c'].map(at);
  for (const volume of volumes) await createVolume(volume, { sizeBytes: MIB, trackSizeBytes: 65_536 });
  const serving = await start(t, volumes, [
    { place: { kind: 'unix', path: at('all') } },
    { place: { kind: 'unix', path: at('some') }, exports: ['c', 'a'] },
  ]);
  t.strictSame(serving.uris, [
    `nbd+unix:///a?socket=${at('a/nbd.sock')}`,
    `nbd+unix:///b?socket=${at('b/nbd.sock')}`,
    `nbd+unix:///c?socket=${at('c/nbd.sock')}`,
    `nbd+unix:///a?socket=${at('all')}`,
    `nbd+unix:///b?socket=${at('all')}`,
    `nbd+unix:///c?socket=${at('all')}`,
    `nbd+unix:///a?socket=${at('some')}`,
    `nbd+unix:///c?socket=${at('some')}`,
  ]);
  const listed = async (socket: string): Promise<readonly string[]> =>
    (await NbdClient.list(`nbd+unix:///?socket=${socket}`)).map(({ name }) => name);
  t.strictSame(await listed(at('b/nbd.sock')), ['b']);
  t.strictSame(await listed(at('all')), ['a', 'b', 'c']);
  t.strictSame(await listed(at('some')), ['a', 'c']);
  await t.rejects(NbdClient.connect(`nbd+unix:///b?socket=${at('some')}`), { code: 'export-unknown' });
  const own = await NbdClient.connect(`nbd+unix:///?socket=${at('b/nbd.sock')}`);
  t.equal(own.exportInfo.name, 'b', 'the default export of its own socket');
  await own.disconnect();
  await serving.stop();
  for (const path of ['all', 'some', 'a/nbd.sock']) t.notOk(existsSync(at(path)), path);
});

t.test('snapshots are listed behind their volumes, wherever these are', async (t) => {
  const at = makeDirectory(t);
  const volumes = ['a', 'b', 'a@x'].map(at);
  for (const volume of volumes) await createVolume(volume, { sizeBytes: MIB, trackSizeBytes: 65_536 });
  for (const name of ['a', 'b']) {
    const registry = createDeviceRegistry();
    const volume = await Volume.open(at(name), { registry, activity: 'testing' });
    await volume.createSnapshot('old');
    await volume.close();
  }
  const serving = await start(t, volumes, [
    { place: { kind: 'unix', path: at('all') } },
    { place: { kind: 'unix', path: at('some') }, exports: ['a'] },
  ]);
  t.strictSame(
    serving.uris.filter((uri) => uri.endsWith(at('all'))),
    ['a', 'b', 'a%40x', 'a%40old', 'b%40old'].map((name) => `nbd+unix:///${name}?socket=${at('all')}`),
  );
  const listed = async (socket: string): Promise<readonly string[]> =>
    (await NbdClient.list(`nbd+unix:///?socket=${socket}`)).map(({ name }) => name);
  t.strictSame(await listed(at('all')), ['a', 'b', 'a@x', 'a@old', 'b@old']);
  t.strictSame(await listed(at('some')), ['a', 'a@old'], 'and not the volume that is named like a snapshot');
  t.strictSame(await listed(at('a/nbd.sock')), ['a', 'a@old']);
  t.strictSame(await listed(at('b/nbd.sock')), ['b', 'b@old']);
  await t.rejects(NbdClient.connect(`nbd+unix:///a@x?socket=${at('some')}`), { code: 'export-unknown' });
  await t.rejects(NbdClient.connect(`nbd+unix:///b@old?socket=${at('some')}`), { code: 'export-unknown' });
  for (const [socket, name] of [
    ['a/nbd.sock', 'a'],
    ['some', 'a'],
    ['b/nbd.sock', 'b'],
  ] as const) {
    const client = await NbdClient.connect(`nbd+unix:///?socket=${at(socket)}`);
    t.equal(client.exportInfo.name, name, 'the default export is the volume, not one of its snapshots');
    await client.disconnect();
  }
});

t.test('groups, by the control socket: links, volumes named twice, and no hanging', async (t) => {
  const at = makeDirectory(t);
  const volumes = ['a', 'b'].map(at);
  for (const volume of volumes) await createVolume(volume, { sizeBytes: MIB, trackSizeBytes: 65_536 });
  await start(t, volumes, []);
  symlinkSync(at('b'), at('link'));
  const control = await ControlClient.connect(at('a'));
  if (control === undefined) throw new Error('Nobody answers');
  t.teardown(() => control.close());
  const make = (name: string, others: readonly string[]): Promise<unknown> =>
    control.request({ command: 'snapshot-create', params: { name, others } });
  await t.rejects(make('one', [at('a')]), { code: 'named-twice' });
  await t.rejects(make('one', [at('b'), at('link')]), { code: 'named-twice' });
  await t.rejects(make('one', [at('nowhere')]), { code: 'not-served-together' });
  t.match(await make('one', [at('link')]), [
    { volume: 'a', name: 'one' },
    { volume: 'b', name: 'one' },
  ]);
  const backup = { store: '/nowhere', level: 'auto', style: { codec: 'none' }, container: [] } as const;
  const others = [{ volume: at('a') }];
  await t.rejects(control.request({ command: 'backup', params: { ...backup, others } }), {
    code: 'named-twice',
  });
  const listed = await NbdClient.list(`nbd+unix:///?socket=${at('b/nbd.sock')}`);
  t.strictSame(
    listed.map(({ name }) => name),
    ['b', 'b@one'],
    'a snapshot that was just made is exported',
  );
});

t.test('a restriction to a name that nobody has is refused before anything is opened', async (t) => {
  const at = makeDirectory(t);
  await createVolume(at('a'), { sizeBytes: MIB, trackSizeBytes: 65_536 });
  const place = { kind: 'unix', path: at('some') } as const;
  await t.rejects(start(t, [at('a')], [{ place, exports: ['a', 'b'] }]), {
    code: 'unknown-export',
    details: { name: 'b', served: ['a'] },
  });
  t.notOk(existsSync(at('some')));
});

t.test('a write that waits for room in the delta store does not keep the server from stopping', async (t) => {
  const path = makeDirectory(t);
  const directory = path('v');
  const deltas = { places: [{ place: path('deltas'), bytesMax: 2 * MIB }] };
  await createVolume(directory, { sizeBytes: 4 * MIB, trackSizeBytes: 65_536, deltas });
  const serving = await start(t, [directory], []);
  const client = await NbdClient.connect(`nbd+unix:///v?socket=${join(directory, 'nbd.sock')}`);
  // More than there is room for, and nobody makes a backup.
  const failed = t.rejects(client.write(Buffer.alloc(4 * MIB, 1), 0));
  await untilWaiting(directory);
  await serving.stop();
  await failed;
  const volume = await Volume.open(directory, { registry: createDeviceRegistry(), activity: 'testing' });
  t.equal(volume.status().poisoned, undefined, 'nothing is wrong with the volume');
  t.equal(volume.status().startedClean, true);
  await volume.close();
});

/** The server is asked again and again: it does not tell by itself. */
async function untilWaiting(directory: string): Promise<void> {
  const control = await ControlClient.connect(directory);
  try {
    for (;;) {
      const { writesWaiting } = Object.assign(
        { writesWaiting: 0 },
        await control?.request({ command: 'status' }),
      );
      if (writesWaiting > 0) return;
    }
  } finally {
    control?.close();
  }
}
