/**
 * The main job as a story: a volume is served, a Linux kernel mounts it, it is backed up while programs in
 * the guest go on writing, and what was saved is put onto other devices and compared file by file.
 *
 *   host                                   guest (native-tests/support/vm.ts)
 *   cowbell serve   <--- NBD over TCP ---  nbd-client, ext4, a writer that never rests
 *   cowbell backup  --> store
 *   cowbell snapshot                      made while it writes, looked into, rolled back to
 *   cowbell restore --> new files, at other addresses
 *   cowbell store list, prune --dry-run, merge, verify
 *   cowbell restore --> a new file, from the one set that is left of three
 *   cowbell recover                       the home is gone: served again at once, restored behind
 *   cowbell serve --survive               a home is deleted while fio writes: nobody notices (demo-survival.ts)
 *   e2fsck, debugfs, sha256sum, cmp        judge the result; none of them is ours
 *
 * Before each backup the guest writes a manifest of checksums and syncs; afterwards every file in it must be
 * in the restored filesystem, byte for byte, whatever the writer did to other files meanwhile. The last backup
 * is taken when nothing writes, beside a copy of the volume that nbdcopy makes: what is restored after its chain
 * was merged must be that copy, every byte, and so must the volume be when its home was deleted and it is recovered.
 *
 * The working directory is removed at the end, unless the demo failed or `--keep` was given.
 */
import { createHash } from 'node:crypto';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  freePort,
  must,
  mustCowbell,
  run,
  type Running,
  startCowbell,
} from '../native-tests/support/process.ts';
import { findTool } from '../native-tests/support/tools.ts';
import { HOST_ADDRESS, Vm } from '../native-tests/support/vm.ts';
import { loseHomeUnderWriter } from './demo-survival.ts';

const MIB = 1024 ** 2;
const VOLUME_MIB = 1024;
const FILE_COUNT = 600;
const FILE_BYTES_MIN = 8 * 1024;
const FILE_BYTES_MAX = 512 * 1024;
const DEVICE = '/dev/nbd0';
const PRIVILEGED_TOOLS = ['e2fsck', 'debugfs'] as const;

/** What one backup reported. */
interface SetReport {
  readonly set: string;
  readonly level: string;
  readonly tracks: number;
  readonly bytesRead: number;
  readonly bytesStored: number;
  readonly diverted: number;
  readonly freezeMs: number;
  readonly durationMs: number;
}

/** One piece of the volume and where a restore puts it, in MiB. */
interface Piece {
  readonly source: number;
  readonly length: number;
  readonly target: string;
  readonly offset: number;
}

const started = performance.now();
const work = mkdtempSync(join(tmpdir(), 'cowbell-demo-'));
const volume = join(work, 'disk');
const store = join(work, 'store');
/** The volume as it was at the last backup, which nothing of ours has copied. */
const atRest = join(work, 'at-rest.img');

function say(text: string): void {
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  console.log(`[${seconds.padStart(6)} s] ${text}`);
}

/** What a command printed, below what was said. */
function show(output: string): void {
  for (const line of output.trimEnd().split('\n')) console.log(`             ${line.trimEnd()}`);
}

function megabytes(bytes: number): string {
  return `${(bytes / MIB).toFixed(1)} MiB`;
}

function toolPath(name: (typeof PRIVILEGED_TOOLS)[number]): string {
  const path = findTool(name);
  if (path === undefined) throw new Error(`${name} is missing, install the Debian package e2fsprogs`);
  return path;
}

/** Copies real files of this machine into two directories, for before and after the full backup. */
function collectFiles(first: string, second: string): number {
  mkdirSync(first);
  mkdirSync(second);
  const sources = ['/usr/share', '/usr/include', 'node_modules'].flatMap(filesBelow);
  const step = Math.max(1, Math.floor(sources.length / FILE_COUNT));
  const chosen = sources.filter((_, index) => index % step === 0).slice(0, FILE_COUNT);
  let bytes = 0;
  for (const [index, source] of chosen.entries()) {
    const content = readFileSync(source);
    bytes += content.length;
    const extension = /\.[a-z0-9]{1,8}$/i.exec(source)?.[0] ?? '';
    writeFileSync(join(index % 3 === 2 ? second : first, `${index}${extension}`), content);
  }
  say(`the guest gets ${chosen.length} files of this machine, ${megabytes(bytes)}`);
  return chosen.length;
}

function filesBelow(directory: string): string[] {
  let entries;
  try {
    entries = readdirSync(directory, { withFileTypes: true });
  } catch {
    return []; // Absent or not readable: the demo takes what there is.
  }
  return entries
    .toSorted((a, b) => (a.name < b.name ? -1 : 1))
    .flatMap((entry) => {
      const path = join(directory, entry.name);
      if (entry.isDirectory()) return filesBelow(path);
      if (!entry.isFile()) return [];
      const { size } = statSync(path);
      return size >= FILE_BYTES_MIN && size <= FILE_BYTES_MAX ? [path] : [];
    });
}

/** Serves the volume and returns the server with the URI it is ready at. */
async function serve(): Promise<{ server: Running; uri: string }> {
  const server = startCowbell(['serve', volume, '--listen', `127.0.0.1:${await freePort()}`]);
  const line = await server.waitForLine(/^ready nbd:\/\//);
  return { server, uri: line.slice('ready '.length) };
}

/** Attaches the export in the guest, with the arguments that `attach --print` gives. */
async function attach(vm: Vm, uri: string): Promise<void> {
  const printed = (await mustCowbell(['attach', '--print', uri, DEVICE])).trim();
  const command = printed.replace('127.0.0.1', HOST_ADDRESS);
  say(`guest: ${command}`);
  await vm.must(`${command}
    until [ "$(cat /sys/block/nbd0/size)" -gt 0 ]; do sleep 0.05; done`);
}

/** A process in the guest that creates, overwrites, appends to, renames and removes files, and counts. */
async function startWriter(vm: Vm): Promise<void> {
  await vm.must(`mkdir /mnt/busy
    cat >/run/writer <<'END'
    count=0
    while [ ! -e /run/stop ]; do
      count=$((count + 1))
      file=/mnt/busy/$((count % 37))
      dd if=/dev/urandom of=$file bs=16k count=$((count % 9 + 1)) conv=notrunc 2>/dev/null
      [ $((count % 5)) -ne 0 ] || echo "line $count" >>/mnt/busy/log
      [ $((count % 7)) -ne 0 ] || mv $file $file.old
      [ $((count % 11)) -ne 0 ] || rm -f /mnt/busy/*.old
      [ $((count % 13)) -ne 0 ] || sync
      echo $count >/run/count
    done
    touch /run/stopped
END
    sh /run/writer &
    until [ -s /run/count ]; do sleep 0.05; done`);
}

async function writes(vm: Vm): Promise<number> {
  return Number(await vm.must('cat /run/count'));
}

/** Writes the checksums of all files but the writer's, syncs, and returns them. */
async function manifest(vm: Vm): Promise<string> {
  return await vm.must(
    'cd /mnt; find files -type f | sort | xargs sha256sum >/mnt/manifest; sync; cat /mnt/manifest',
  );
}

/** The `set` event among the JSON lines of a backup. */
function readReport(output: string): SetReport {
  for (const line of output.trim().split('\n')) {
    const event: Record<string, unknown> = JSON.parse(line);
    if (event['event'] !== 'set') continue;
    return {
      set: String(event['set']),
      level: String(event['level']),
      tracks: Number(event['tracks']),
      bytesRead: Number(event['bytesRead']),
      bytesStored: Number(event['bytesStored']),
      diverted: Number(event['diverted']),
      freezeMs: Number(event['freezeMs']),
      durationMs: Number(event['durationMs']),
    };
  }
  throw new Error(`backup reported no set:\n${output}`);
}

async function backup(level: string): Promise<SetReport> {
  const output = await mustCowbell(['backup', '--json', '--store', store, '--level', level, volume], {
    timeoutMs: 120_000,
  });
  return readReport(output);
}

function describeSet(report: SetReport): string {
  return (
    `${report.level} backup ${report.set}: ${report.tracks} tracks, ${megabytes(report.bytesRead)} read, ` +
    `${megabytes(report.bytesStored)} stored, ${report.diverted} diverted, writes paused ${report.freezeMs} ms, ` +
    `${(report.durationMs / 1000).toFixed(1)} s`
  );
}

async function backupUnderWriter(vm: Vm, level: string): Promise<SetReport> {
  const before = await writes(vm);
  const report = await backup(level);
  const during = (await writes(vm)) - before;
  say(`${describeSet(report)}; the writer changed ${during} files meanwhile`);
  return report;
}

/** A backup of whatever level fits, while nobody writes, and the volume as another program copies it. */
async function backupAtRest(): Promise<void> {
  const report = await backup('auto');
  await must('nbdcopy', [exported('disk'), atRest], { timeoutMs: 120_000 });
  say(`${describeSet(report)}; nbdcopy copied the volume`);
}

/** Restores a set through a remap table. */
async function restore(
  set: string,
  name: string,
  sizes: Record<string, number>,
  pieces: readonly Piece[],
): Promise<void> {
  const table = join(work, `${name}.json`);
  const document = {
    format: 'cowbell-remap',
    version: 0,
    targets: Object.entries(sizes).map(([target, size]) => ({
      name: target,
      uri: join(work, `${target}.img`),
      sizeBytes: `${size}M`,
    })),
    rows: pieces.map(({ source, length, target, offset }) => ({
      source: `${source}M`,
      length: `${length}M`,
      target,
      offset: `${offset}M`,
    })),
  };
  writeFileSync(table, JSON.stringify(document, null, 2));
  const begin = performance.now();
  await mustCowbell(['restore', store, set, '--remap', table], { timeoutMs: 120_000 });
  const places = pieces.map(
    ({ source, length, target, offset }) =>
      `${source}..${source + length} MiB to ${target}.img at ${offset} MiB`,
  );
  say(`restored ${set}: ${places.join(', ')}; ${((performance.now() - begin) / 1000).toFixed(1)} s`);
}

/** Puts the pieces of a restored volume together again, with dd; returns the image. */
async function assemble(name: string, pieces: readonly Piece[]): Promise<string> {
  const target = join(work, `${name}-whole.img`);
  for (const { source, length, target: from, offset } of pieces) {
    const places = [`skip=${offset}`, `seek=${source}`, `count=${length}`];
    const options = ['bs=1M', ...places, 'conv=sparse,notrunc', 'status=none'];
    await must('dd', [`if=${join(work, `${from}.img`)}`, `of=${target}`, ...options]);
  }
  await must('truncate', ['-s', `${VOLUME_MIB}M`, target]);
  return target;
}

/** Judges a restored filesystem with programs that are not ours. */
async function judge(image: string, wanted: string): Promise<void> {
  const replay = await run(toolPath('e2fsck'), ['-p', image]);
  if (replay.status !== 0 && replay.status !== 1)
    throw new Error(`e2fsck -p: ${replay.stdout}${replay.stderr}`);
  await must(toolPath('e2fsck'), ['-fn', image]);
  const found = join(work, 'found');
  mkdirSync(found);
  await must(toolPath('debugfs'), ['-R', `rdump /files ${found}`, image], { timeoutMs: 120_000 });
  const lines = wanted.trim().split('\n');
  const different = lines.filter((line) => {
    const [sum, path = ''] = line.split('  ');
    return sha256(join(found, path)) !== sum;
  });
  if (different.length > 0) throw new Error(`${different.length} files differ, first ${different[0]}`);
  rmSync(found, { recursive: true });
  const journal =
    replay.status === 1 || /recovering journal/.test(replay.stdout) ? 'journal replayed' : 'was clean';
  say(`  e2fsck -p: ${journal}; e2fsck -fn: clean; ${lines.length} files of the manifest identical`);
}

function sha256(path: string): string {
  try {
    return createHash('sha256').update(readFileSync(path)).digest('hex');
  } catch {
    return 'absent';
  }
}

/** Makes a snapshot under the writer. */
async function makeSnapshot(): Promise<void> {
  const [line = ''] = (await mustCowbell(['snapshot', 'create', 'first', volume])).split('\n');
  say(line);
}

function exported(name: string): string {
  return `nbd+unix:///${name}?socket=${join(volume, 'nbd.sock')}`;
}

/** What the snapshot's export holds is judged; the volume is rolled back to it and must hold the same. */
async function judgeSnapshot(wanted: string): Promise<void> {
  const [kept, now] = [join(work, 'snapshot.img'), join(work, 'rolled-back.img')];
  await must('nbdcopy', [exported('disk%40first'), kept], { timeoutMs: 120_000 });
  await mustCowbell(['snapshot', 'rollback', volume, 'first'], { timeoutMs: 120_000 });
  await must('nbdcopy', [exported('disk'), now], { timeoutMs: 120_000 });
  await must('cmp', [kept, now]);
  say('snapshot rollback first: the volume holds what the export disk@first held');
  await judge(kept, wanted);
}

async function restoreAndJudge(
  full: SetReport,
  first: string,
  incremental: SetReport,
  second: string,
): Promise<void> {
  const moved = [{ source: 0, length: VOLUME_MIB, target: 'moved', offset: 1 }];
  await restore(full.set, 'moved', { moved: VOLUME_MIB + 2 }, moved);
  await judge(await assemble('moved', moved), first);

  const half = VOLUME_MIB / 2;
  const pieces = [
    { source: 0, length: 300, target: 'left', offset: 700 },
    { source: 300, length: half - 300, target: 'right', offset: 3 },
    { source: half, length: half, target: 'left', offset: 7 },
  ];
  await restore(incremental.set, 'split', { left: 1024, right: 300 }, pieces);
  await judge(await assemble('split', pieces), second);
}

/** The store is looked after without the volume: its three sets become one, which must hold the same. */
async function mergeAndCompare(): Promise<void> {
  say('store list:');
  show(await mustCowbell(['store', 'list', store]));
  say('store prune --keep-last 2 --dry-run: what such a policy would do');
  show(await mustCowbell(['store', 'prune', store, '--keep-last', '2', '--dry-run']));
  say('store merge: the newest set and all it builds on become a full set, the volume is not asked');
  show(await mustCowbell(['store', 'merge', store, 'latest:disk'], { timeoutMs: 120_000 }));
  show(await mustCowbell(['store', 'list', store]));
  say('store verify: every byte that is stored');
  show(await mustCowbell(['store', 'verify', store], { timeoutMs: 120_000 }));
  const merged = join(work, 'merged.img');
  show(await mustCowbell(['restore', store, 'latest', merged], { timeoutMs: 120_000 }));
  await must('cmp', [atRest, merged]);
  say('what the merged set restored is what nbdcopy copied, every byte');
}

/** The home is deleted: the volume is served again at once, and its home filled behind who reads it. */
async function loseAndRecover(): Promise<void> {
  rmSync(join(volume, 'home.raw'));
  say('the home of the volume is deleted');
  const begin = performance.now();
  const server = startCowbell(['recover', store, 'latest', volume]);
  try {
    await server.waitForLine(/^ready /);
    const first = ['-r', '-f', 'raw', '-c', `read ${VOLUME_MIB / 2}M 4k`, exported('disk')];
    await must('qemu-io', first);
    say(`cowbell recover: the first read was answered ${secondsSince(begin)} s after the command began`);
    const recovered = join(work, 'recovered.img');
    await must('nbdcopy', [exported('disk'), recovered], { timeoutMs: 120_000 });
    await must('cmp', [atRest, recovered]);
    say('what is read while it is restored is what nbdcopy copied, every byte');
    say(await server.waitForLine(/^Recovered /));
  } finally {
    await server.stop();
  }
  await must('cmp', [atRest, join(volume, 'home.raw')]);
  say('and so is its home');
}

function secondsSince(sinceMs: number): string {
  return ((performance.now() - sinceMs) / 1000).toFixed(2);
}

async function story(vm: Vm, server: Running, uri: string): Promise<void> {
  await attach(vm, uri);
  await vm.must(`mkfs.ext4 -q ${DEVICE}; mount -t ext4 ${DEVICE} /mnt; cp -a /data/first /mnt/files`);
  say('guest: made ext4, mounted it, copied the first files');
  await startWriter(vm);
  const first = await manifest(vm);
  const full = await backupUnderWriter(vm, 'full');
  await makeSnapshot();

  await vm.must(`cp -a /data/second /mnt/files/second; cd /mnt/files
    for file in $(ls | head -n 40); do [ ! -f $file ] || echo changed >>$file; done
    rm -f $(ls | tail -n 40 | grep -v second)`);
  const second = await manifest(vm);
  const incremental = await backupUnderWriter(vm, 'incremental');
  const count = await writes(vm);
  await vm.must(`touch /run/stop; until [ -e /run/stopped ]; do sleep 0.05; done; umount /mnt
    nbd-client -nonetlink -d ${DEVICE}`);
  say(`guest: the writer stopped after ${count} rounds, unmounted`);
  await vm.powerOff();
  await backupAtRest();
  await judgeSnapshot(first);
  await server.stop();

  await restoreAndJudge(full, first, incremental, second);
  await mergeAndCompare();
  await loseAndRecover();
  await loseHomeUnderWriter({ work, store, say, show });
}

async function main(): Promise<void> {
  const first = join(work, 'first');
  const second = join(work, 'second');
  collectFiles(first, second);
  await mustCowbell(['volume', 'create', volume, '--size', `${VOLUME_MIB}M`, '--track-size', '64K']);
  await mustCowbell(['store', 'init', store]);
  const { server, uri } = await serve();
  say(`created a volume of ${VOLUME_MIB} MiB and a store; serving ${uri}`);
  try {
    const vm = await Vm.start({ files: { '/data/first': first, '/data/second': second } });
    say('a Linux kernel has booted in a virtual machine');
    try {
      await story(vm, server, uri);
    } finally {
      await vm.kill();
    }
  } finally {
    if (server.ended === undefined) await server.stop();
  }
}

try {
  await main();
  if (process.argv.includes('--keep')) console.log(`kept ${work}`);
  else rmSync(work, { recursive: true });
  console.log('demo: done');
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  console.error(`demo: FAILED, what it made is in ${work}`);
  process.exitCode = 1;
}
