/**
 * Goal: a volume is a file through `nbdfuse`, and a filesystem on that file works as on a disk: made, mounted
 * through a loop device, written, synced, trimmed, unmounted, found sound, and all files are there again.
 *
 * Method: this machine's own kernel mounts; e2fsck judges, through the file and, after the server's end, on the
 * volume's home. Needs root, /dev/fuse and a free loop device.
 */
import { existsSync, mkdirSync } from 'node:fs';
import t, { type Test } from 'tap';
import { must, run, Running } from './support/process.ts';
import { serveVolume } from './support/served.ts';
import { findTool, requireTools, skipOrFail } from './support/tools.ts';

const TOOLS = ['nbdfuse', 'mkfs.ext4', 'e2fsck', 'fusermount3', 'mount', 'umount', 'losetup', 'fstrim'];
const tool = (name: string): string => findTool(name) ?? name;

/** A free loop device, or undefined where the test was skipped. */
async function findLoop(t: Test): Promise<string | undefined> {
  if (!existsSync('/dev/fuse')) {
    skipOrFail(t, 'missing /dev/fuse');
    return undefined;
  }
  const { status, stdout, stderr } = await run(tool('losetup'), ['--find']);
  if (status === 0) return stdout.trim();
  skipOrFail(t, `missing a free loop device: ${stderr.trim()}`);
  return undefined;
}

t.test('ext4 on a loop device on the file that nbdfuse makes of a volume', async (t) => {
  if (!requireTools(t, TOOLS) || (await findLoop(t)) === undefined) return;
  const { at, uri, server } = await serveVolume(t, { size: '96M' });
  const [fuse, disk, mounted] = [at('fuse'), at('fuse/disk'), at('mnt')];
  for (const directory of [fuse, mounted]) mkdirSync(directory);
  const nbdfuse = new Running(tool('nbdfuse'), [disk, uri]);
  // Lazily and in this order, whatever of it is there: nothing may outlive a failed test.
  t.teardown(async () => {
    await run(tool('umount'), ['--lazy', mounted]);
    await run(tool('umount'), ['--lazy', fuse]);
    if (nbdfuse.ended === undefined) await nbdfuse.stop('SIGKILL');
  });
  await must('bash', [
    '-c',
    'for i in {1..200}; do [ -f "$1" ] && exit; sleep 0.05; done; exit 1',
    'wait',
    disk,
  ]);

  await must(tool('mkfs.ext4'), ['-q', disk]);
  await must(tool('mount'), ['-o', 'loop', disk, mounted]);
  await must('cp', ['-r', import.meta.dirname, at('mnt/data')]);
  await must('dd', ['if=/dev/urandom', `of=${at('mnt/large')}`, 'bs=1M', 'count=24', 'conv=fsync']);
  await must('dd', ['if=/dev/zero', `of=${at('mnt/gone')}`, 'bs=1M', 'count=24', 'conv=fsync']);
  await must('rm', [at('mnt/gone')]);
  const sums = await must('bash', [
    '-c',
    'cd "$1" && find . -type f | sort | xargs sha256sum',
    'sums',
    mounted,
  ]);
  t.ok(sums.split('\n').length > 20, 'there are files to compare');
  const trimmed = await run(tool('fstrim'), ['--verbose', mounted]);
  t.comment(`${trimmed.stdout}${trimmed.stderr}`.trim());
  await must(tool('umount'), [mounted]);
  await must(tool('e2fsck'), ['-fn', disk]);

  await must(tool('mount'), ['-o', 'loop,ro', disk, mounted]);
  const back = await run('sha256sum', ['--check', '--strict', '--quiet', '-'], { cwd: mounted, input: sums });
  t.equal(back.status, 0, back.stdout + back.stderr);
  await must(tool('umount'), [mounted]);
  await must(tool('fusermount3'), ['-u', fuse]);
  t.equal((await nbdfuse.wait()).status, 0, 'nbdfuse ends cleanly');
  t.equal((await server.stop()).status, 0);
  await must(tool('e2fsck'), ['-fn', at('home.raw')]);
});
