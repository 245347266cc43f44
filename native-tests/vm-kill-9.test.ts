/**
 * Goal: the server of a mounted ext4 is killed with SIGKILL under load, again and again, and started again by
 * itself: what was synced before is there, the filesystem is sound, and the next backup is an incremental one that
 * reads the regions which were written, stores those tracks alone that differ, and restores what the home holds.
 *
 * Method: in the guest one writer syncs one new file after another and notes its checksum, another overwrites blocks
 * of an older file in place; before each kill a place of its own is written that nothing comes near again. Where
 * `cowbell attach` keeps the device, they only wait while there is no server. Where nbd-client does, it does not
 * connect again (src/cli/attach.ts says why), they fail, and the filesystem is mounted again from the device alone:
 * nothing is left in the guest's memory that could hide a loss. Backups follow one kill and two in a row. The judges
 * are on this side: e2fsck, the checksums of the files that debugfs reads from the home, a count of the tracks that
 * differ from the set before, and cmp of the home and what was restored.
 */
import { closeSync, mkdirSync, openSync, readSync } from 'node:fs';
import t, { type Test } from 'tap';
import { GUEST_COWBELL, GUEST_MEMORY_MIB, guestCowbell } from './support/guest-cowbell.ts';
import { freePort, must, mustCowbell, run, type Running } from './support/process.ts';
import { backUp, type Served, serveVolume, startServer, statusOf } from './support/served.ts';
import { findTool, requireTools } from './support/tools.ts';
import { bootVm, HOST_ADDRESS, type Vm, type VmOptions } from './support/vm.ts';

const DEVICE = '/dev/nbd0';
const SIZE = '512M';
const TRACK_BYTES = 65_536;
/** Written before the full backup, and hardly ever after it: incremental ones have no need to read it all. */
const OLD_MIB = 96;
/** More than a region of the intent log: kills write to the old file this far apart. */
const APART_MIB = 20;
/** Files to be synced before something else happens. */
const FILES = 10;
const tool = (name: string): string => findTool(name) ?? name;

/** Goes on until `/run/stop` is there or one of the two fails. A file is noted once it is synced. */
const LOAD = `rm -f /run/stop /run/ended /run/failed
  goes_on() { [ ! -e /run/stop ] && [ ! -e /run/failed ]; }
  (
    (count=$(wc -l </run/noted)
    while goes_on; do
      count=$((count + 1))
      dd if=/dev/urandom of=/mnt/files/$count bs=4k count=$((1 + count % 16)) conv=fsync || break
      (cd /mnt/files && sha256sum $count) >/run/sum && cat /run/sum >>/run/noted || break
    done
    [ -e /run/stop ] || touch /run/failed) &
    (place=0
    while goes_on; do
      place=$(((place + 37) % 512))
      [ $((place % 8)) -eq 0 ] && also=,fsync || also=
      dd if=/dev/urandom of=/mnt/changing bs=16k count=3 seek=$place conv=notrunc$also || break
    done
    [ -e /run/stop ] || touch /run/failed) &
    wait; touch /run/ended
  ) >/dev/null 2>&1 &`;

const STOP_LOAD = 'touch /run/stop; until [ -e /run/ended ]; do sleep 0.1; done';

interface Attachment {
  readonly name: string;
  /** How often the server is killed before each incremental backup. */
  readonly kills: readonly number[];
  readonly vm: () => Promise<VmOptions>;
  /** The guest's script that attaches the device for the first time. */
  readonly attach: (uri: string) => Promise<string>;
  /** The guest's script after the server's return; undefined where the load goes on by itself. */
  readonly attachAgain: ((uri: string) => Promise<string>) | undefined;
}

async function attachWithNbdClient(uri: string): Promise<string> {
  return `${(await mustCowbell(['attach', '--print', uri, DEVICE])).trim()}
    until [ "$(cat /sys/block/nbd0/size)" -gt 0 ]; do sleep 0.05; done`;
}

const ATTACHMENTS: readonly Attachment[] = [
  {
    name: 'cowbell attach, where the load goes on',
    kills: [2],
    vm: async () => ({ files: await guestCowbell(), memoryMib: GUEST_MEMORY_MIB }),
    attach: (uri) => Promise.resolve(`${GUEST_COWBELL} attach ${uri} ${DEVICE} --timeout 4`),
    attachAgain: undefined,
  },
  {
    name: 'nbd-client, where the filesystem is mounted again',
    kills: [1],
    vm: () => Promise.resolve({}),
    attach: attachWithNbdClient,
    // What is in flight would wait for its timeout; disconnecting ends it. The device is free when nobody has it open.
    attachAgain: async (uri) => `nbd-client -d ${DEVICE}; until [ -e /run/ended ]; do sleep 0.1; done
      [ -e /run/failed ]; umount /mnt; while [ -e /sys/block/nbd0/pid ]; do sleep 0.05; done
      ${await attachWithNbdClient(uri)}
      mount -t ext4 ${DEVICE} /mnt
      cd /mnt/files; sha256sum -c /run/noted >/run/checked || { grep -v ': OK$' /run/checked; exit 1; }
      ${LOAD}`,
  },
];

/** Waits until the load has synced some more files. */
async function moreFiles(vm: Vm): Promise<void> {
  await vm.must(`wanted=$(($(wc -l </run/noted) + ${FILES}))
    until [ "$(wc -l </run/noted)" -ge $wanted ] || [ -e /run/failed ]; do sleep 0.1; done
    [ ! -e /run/failed ]`);
}

/** Holds the home against what the guest noted, without the guest. */
async function assertHome(t: Test, at: Served['at'], noted: string, kill: number): Promise<void> {
  const check = await run(tool('e2fsck'), ['-f', '-n', at('home.raw')]);
  if (check.status !== 0) t.comment(check.stdout + check.stderr);
  t.equal(check.status, 0, 'the filesystem is sound');
  const files = at(`files-${kill}`);
  mkdirSync(files);
  await must(tool('debugfs'), ['-R', `rdump /files ${files}`, at('home.raw')]);
  const sums = await run('sha256sum', ['--check', '--strict', '--quiet', '-'], {
    cwd: `${files}/files`,
    input: noted,
  });
  if (sums.status !== 0) t.comment(sums.stdout + sums.stderr);
  t.equal(sums.status, 0, `all ${noted.trim().split('\n').length} files that were synced are there`);
}

interface Backup {
  readonly level: unknown;
  readonly tracks: number;
  readonly tracksRead: number;
  /** A file with what its chain restores. */
  readonly restored: string;
}

async function backUpAndRestore({ at, volume }: Served): Promise<Backup> {
  const { level, set, tracks, bytesRead } = await backUp(volume, at('store'));
  const restored = at(`${String(set)}.raw`);
  await mustCowbell(['restore', at('store'), String(set), restored]);
  return { level, tracks: Number(tracks), tracksRead: Number(bytesRead) / TRACK_BYTES, restored };
}

/** How many tracks of two volumes of one size differ. */
function differingTracks(...paths: readonly [string, string]): number {
  const [one, other] = [openSync(paths[0], 'r'), openSync(paths[1], 'r')];
  const [track, otherTrack] = [Buffer.alloc(TRACK_BYTES), Buffer.alloc(TRACK_BYTES)];
  let count = 0;
  for (let at = 0; readSync(one, track, 0, TRACK_BYTES, at) > 0; at += TRACK_BYTES) {
    readSync(other, otherTrack, 0, TRACK_BYTES, at);
    if (!track.equals(otherTrack)) count += 1;
  }
  closeSync(one);
  closeSync(other);
  return count;
}

/** Backs up the home, which is at rest, after a backup of an earlier time. */
async function assertIncremental(t: Test, served: Served, fullTracks: number, base: Backup): Promise<Backup> {
  const home = served.at('home.raw');
  const backup = await backUpAndRestore(served);
  t.comment(`${backup.tracks} tracks of ${backup.tracksRead} read; ${fullTracks} in full`);
  t.equal(backup.level, 'incremental');
  t.equal(backup.tracks, differingTracks(base.restored, home), 'only tracks that differ are stored');
  t.ok(backup.tracksRead < 0.75 * fullTracks, 'regions that were not written are not read');
  await must('cmp', [home, backup.restored]);
  return backup;
}

for (const { name, kills, vm: options, attach, attachAgain } of ATTACHMENTS) {
  t.test(name, async (t) => {
    if (!requireTools(t, ['e2fsck', 'debugfs', 'sha256sum', 'cmp'])) return;
    const started = performance.now();
    const comment = (text: string): void =>
      t.comment(`${((performance.now() - started) / 1000).toFixed(1)} s: ${text}`);
    const vm = await bootVm(t, await options());
    if (vm === undefined) return;
    comment('booted');
    const port = await freePort();
    const served = await serveVolume(t, { size: SIZE, serve: ['--listen', `127.0.0.1:${port}`] });
    const { at, volume } = served;
    let server: Running = served.server;
    const uri = `nbd://${HOST_ADDRESS}:${port}/vol`;
    await vm.must(await attach(uri));
    comment('attached');
    await vm.must(`mkfs.ext4 -q ${DEVICE}; mount -t ext4 ${DEVICE} /mnt; mkdir /mnt/files; touch /run/noted
      dd if=/dev/urandom of=/run/block bs=1M count=1 2>/dev/null
      for i in $(seq ${OLD_MIB}); do cat /run/block; done >/mnt/old
      for i in $(seq 9); do cat /run/block; done >/mnt/changing
      sync; ${LOAD}`);
    await mustCowbell(['store', 'init', at('store')]);
    const full = await backUp(volume, at('store'));
    t.equal(full['level'], 'full');
    // An epoch's log begins with what was written in the one before, here everything: one epoch lies between.
    await moreFiles(vm);
    let last = await backUpAndRestore(served);
    t.equal(last.level, 'incremental');
    comment('backed up twice');

    let kill = 0;
    for (const killsBefore of kills) {
      if (kill > 0) await vm.must(`mount -t ext4 ${DEVICE} /mnt; ${LOAD}`);
      for (const end = kill + killsBefore; kill < end;) {
        kill += 1;
        await vm.must(`dd if=/run/block of=/mnt/old bs=4k count=1 seek=$((${kill * APART_MIB} * 256 + 1)) \
          conv=notrunc,fsync 2>/dev/null`);
        await moreFiles(vm);
        t.equal((await server.stop('SIGKILL')).signal, 'SIGKILL');
        ({ server } = await startServer(t, [volume, '--listen', `127.0.0.1:${port}`]));
        t.match(await statusOf(volume), { served: true, startedClean: false });
        if (attachAgain !== undefined) await vm.must(await attachAgain(uri));
        await moreFiles(vm);
        comment(`killed, and ${FILES} more files are synced`);
      }
      await vm.must(`${STOP_LOAD}; [ ! -e /run/failed ]; sync; umount /mnt`);
      await assertHome(t, at, await vm.must('cat /run/noted'), kill);
      last = await assertIncremental(t, served, Number(full['tracks']), last);
      comment('home and backup are as they must be');
    }
    await vm.powerOff();
    t.equal((await server.stop()).status, 0);
  });
}
