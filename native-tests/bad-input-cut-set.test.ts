/**
 * Goal: a set whose file was cut short is found before it is mapped: `store verify` and `restore` end with status
 * 3 and name it, a backup that would build on it is a full one, and the serving process is not touched, also
 * where the cut comes while the file is read.
 *
 * Method: copies of one store with its set cut at several lengths, used while the volume is served. A file cut
 * under a reader is SIGBUS for the process that reads it: only ever a command or a session's child.
 */
import { copyFileSync, cpSync, existsSync, readdirSync, statSync, truncateSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { cowbell, must, mustCowbell, startCowbell } from './support/process.ts';
import { backUp, type Served, serveVolume } from './support/served.ts';
import { requireTools } from './support/tools.ts';

const MIB = 1_048_576;

async function serveWithSet(test: Parameters<typeof serveVolume>[0], sizeMib: number) {
  const served = await serveVolume(test, { size: `${sizeMib}M` });
  const { at, uri, volume } = served;
  await must('dd', ['if=/dev/urandom', `of=${at('in.raw')}`, 'bs=1M', `count=${sizeMib}`]);
  await must('nbdcopy', ['--flush', at('in.raw'), uri]);
  await mustCowbell(['store', 'init', at('store')]);
  const set = String((await backUp(volume, at('store')))['set']);
  const assertServing = (): Promise<string> =>
    must('qemu-io', ['-f', 'raw', '-c', 'write -P 7 0 64k', '-c', 'flush', '-c', 'read -P 7 0 64k', uri]);
  return { ...served, set, assertServing };
}

/** The file of a store's only set. */
function setFile(store: string): string {
  const name = readdirSync(join(store, 'sets')).find((file) => file.endsWith('-0.cbs'));
  if (name === undefined) throw new Error(`No set in ${store}`);
  return join(store, 'sets', name);
}

function copyStore(at: Served['at'], name: string): string {
  cpSync(at('store'), at(name), { recursive: true });
  return at(name);
}

t.test('cut before it is read', async (t) => {
  if (!requireTools(t, ['nbdcopy', 'qemu-io'])) return;
  const { at, volume, set, server, assertServing } = await serveWithSet(t, 8);
  const whole = statSync(setFile(at('store'))).size;
  for (const length of [0, 4096, Math.floor(whole / 2), whole - 1]) {
    const store = copyStore(at, `store-${length}`);
    truncateSync(setFile(store), length);
    const verified = await cowbell(['store', 'verify', store]);
    t.equal(verified.status, 3, `${length} bytes: ${verified.stderr}`);
    t.match(verified.stderr, new RegExp(`^cowbell: Set ${set} is damaged[^\n]*\n$`, 'm'));
    const restored = await cowbell(['restore', store, set, at('out.raw')]);
    t.equal(restored.status, 3, `${length} bytes: ${restored.stderr}`);
    t.match(restored.stderr, new RegExp(`^cowbell: [^\n]*${set}[^\n]*\n$`));
    t.notOk(existsSync(at('out.raw')), 'no target is made');
  }
  const backup = await backUp(volume, at(`store-${whole - 1}`));
  t.match(backup, { level: 'full', reason: /undamaged chain/ });
  await must('cmp', [at('home.raw'), at('in.raw')]);
  await mustCowbell(['restore', at(`store-${whole - 1}`), String(backup['set']), at('out.raw')]);
  await must('cmp', [at('out.raw'), at('in.raw')]);
  await assertServing();
  t.equal((await server.stop()).status, 0);
});

t.test('cut while it is read', async (t) => {
  if (!requireTools(t, ['nbdcopy', 'qemu-io'])) return;
  const { at, volume, uri, server, assertServing } = await serveWithSet(t, 128);
  // Rewritten, so that an incremental backup compares every track with the set's.
  await must('dd', ['if=/dev/urandom', `of=${at('in.raw')}`, 'bs=1M', 'count=128']);
  await must('nbdcopy', ['--flush', at('in.raw'), uri]);
  const file = setFile(at('store'));
  copyFileSync(file, at('kept.cbs'));
  for (const words of [
    ['store', 'verify', at('store')],
    ['restore', at('store'), 'latest', at('out.raw')],
    ['backup', '--store', at('store'), volume],
  ]) {
    copyFileSync(at('kept.cbs'), file);
    const command = startCowbell(['--json', ...words]);
    await command.waitForLine(/"event":"progress"/);
    truncateSync(file, 8192);
    const { status, signal, stderr } = await command.wait();
    const isBackup = words[0] === 'backup';
    // A backup may have taken all it needs from its base already.
    const isRight = isBackup ? status !== null : status === 3 || signal === 'SIGBUS';
    t.ok(isRight, `${words.join(' ')}: ${status ?? signal} ${stderr}`);
    await assertServing();
  }
  const next = await backUp(volume, at('store'), ['--level', 'full']);
  await must('nbdcopy', [uri, at('now.raw')]);
  await mustCowbell(['restore', at('store'), String(next['set']), at('next.raw')]);
  await must('cmp', [at('now.raw'), at('next.raw')]);
  t.equal(statSync(at('next.raw')).size, 128 * MIB);
  t.equal((await server.stop()).status, 0);
});
