/**
 * Goal: volumes come and go while others are served. One that goes is taken from its clients and closed durably, one
 * that comes is wherever all volumes are; where one cannot be opened nothing changes at all, and where one cannot be
 * let in the others are served as was asked.
 *
 * Method: a server without policies, reloaded, and the clients of the room `nbd`.
 */

import { existsSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { MIB, systemClock } from '../base/index.ts';
import { NbdClient } from '../nbd/index.ts';
import { createVolume, Volume } from '../volume/index.ts';
import { ControlClient } from './control-client.ts';
import { createDeviceRegistry } from './devices.ts';
import { Serving } from './serving.ts';

interface World {
  readonly at: (name: string) => string;
  readonly serving: Serving;
  readonly warnings: string[];
  /** Serves these, and tells what came and went. */
  readonly reload: (...names: readonly string[]) => Promise<readonly [added: number, removed: number]>;
  /** The exports on the socket for all. */
  readonly listed: () => Promise<readonly string[]>;
}

async function makeWorld(t: Test): Promise<World> {
  const directory = mkdtempSync(join(tmpdir(), 'cowbell-'));
  t.teardown(() => rmSync(directory, { recursive: true, force: true }));
  const at = (name: string): string => join(directory, name);
  for (const name of ['a', 'b', 'c'])
    await createVolume(at(name), { sizeBytes: MIB, trackSizeBytes: 65_536 });
  const warnings: string[] = [];
  const serving = await Serving.start({
    volumes: [at('a'), at('b')],
    listeners: [{ place: { kind: 'unix', path: at('all') } }],
    readOnly: false,
    clock: systemClock,
    workerPath: '',
    warn: (sentence) => warnings.push(sentence),
  });
  t.teardown(() => serving.stop());
  const reload = async (...names: readonly string[]) => {
    const outcome = await serving.reload(names.map((name) => ({ directory: at(name), policies: [] })));
    return [outcome.added.length, outcome.removed.length] as const;
  };
  const listed = async () =>
    (await NbdClient.list(`nbd+unix:///?socket=${at('all')}`)).map(({ name }) => name);
  return { at, serving, warnings, reload, listed };
}

t.test('one comes and one goes, and who uses another notices nothing', async (t) => {
  const { at, serving, warnings, reload, listed } = await makeWorld(t);
  const stays = await NbdClient.connect(`nbd+unix:///a?socket=${at('all')}`);
  const leaves = await NbdClient.connect(`nbd+unix:///b?socket=${at('b/nbd.sock')}`);
  await leaves.write(Buffer.alloc(4096, 7), 0);
  t.strictSame(await reload('a', 'c'), [1, 1]);
  t.strictSame(await listed(), ['a', 'c']);
  t.strictSame(serving.uris.slice(-1), [`nbd+unix:///c?socket=${at('c/nbd.sock')}`]);
  await t.rejects(leaves.read(Buffer.alloc(4096), 0), { code: 'connection-lost' });
  await stays.write(Buffer.alloc(4096, 9), 0);
  await stays.disconnect();
  const control = await ControlClient.connect(at('c'));
  t.match(await control?.request({ command: 'show' }), { name: 'c' });
  control?.close();

  for (const socket of ['b/nbd.sock', 'b/control.sock']) t.notOk(existsSync(at(socket)), socket);
  const closed = await Volume.open(at('b'), {
    registry: createDeviceRegistry(),
    readOnly: false,
    clock: systemClock,
    activity: 'test',
  });
  t.equal(closed.status().startedClean, true);
  const bytes = Buffer.alloc(4096);
  await closed.read(bytes, 0);
  t.equal(bytes[0], 7, 'and holds what was written');
  await closed.close();

  t.strictSame(await reload('a', 'b', 'c'), [1, 0], 'it may come back');
  t.strictSame(await listed(), ['a', 'c', 'b']);
  t.strictSame(warnings, []);
});

t.test('where one cannot be opened everything stays as it was', async (t) => {
  const { at, reload, listed, warnings } = await makeWorld(t);
  const client = await NbdClient.connect(`nbd+unix:///b?socket=${at('all')}`);
  await t.rejects(reload('c', 'none'), { code: 'not-a-volume' });
  mkdirSync(at('x'));
  await createVolume(at('x/c'), { sizeBytes: MIB, trackSizeBytes: 65_536 });
  await t.rejects(reload('c', 'x/c'), { code: 'duplicate-name' });
  const owner = await Volume.open(at('x/c'), {
    registry: createDeviceRegistry(),
    readOnly: false,
    clock: systemClock,
    activity: 'test',
  });
  await createVolume(at('d'), { sizeBytes: MIB, trackSizeBytes: 65_536 });
  await t.rejects(reload('d', 'x/c'), { code: 'in-use' });
  await owner.close();
  t.strictSame(await listed(), ['a', 'b']);
  await client.write(Buffer.alloc(4096, 1), 0);
  await client.disconnect();
  t.strictSame(await reload('d', 'x/c'), [2, 2], 'what was opened for nothing was given back');
  t.strictSame(warnings, []);
});

t.test('where one cannot be let in it is left out, and that is said', async (t) => {
  const { at, reload, listed, warnings } = await makeWorld(t);
  mkdirSync(at('c/nbd.sock'));
  t.strictSame(await reload('a', 'c'), [0, 1]);
  t.match(warnings, [/^Volume c cannot be served: /]);
  t.strictSame(await listed(), ['a']);
  rmSync(at('c/nbd.sock'), { recursive: true });
  t.strictSame(await reload('a', 'c'), [1, 0]);
});

t.test('one after the other, and none while the server stops', async (t) => {
  const { serving, reload, listed } = await makeWorld(t);
  const both = await Promise.all([reload('c'), reload('a', 'b')]);
  t.strictSame(both, [
    [1, 2],
    [2, 1],
  ]);
  t.strictSame(await listed(), ['a', 'b']);
  const begun = reload('c');
  await new Promise((resolve) => setImmediate(resolve));
  const stopped = serving.stop();
  t.strictSame(await begun, [1, 2], 'one that has begun is ended first');
  await stopped;
  await t.rejects(reload('a'), { code: 'stopping' });
});
