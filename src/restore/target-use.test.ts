/**
 * Goal: a mounted, swapped to, held or attached device or file is found, through its partitions and its disk.
 * Method: tables of the kernel's form in a directory of the test, naming devices that need not exist.
 */

import { statSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { blockDeviceUse, deviceNumber, fileUse, type KernelTables, parseMountinfo } from './target-use.ts';

/** A disk 8:0 with the partitions 8:1 and 8:2, and a disk 8:16 alone. */
function tables(t: Test, mountinfo: string, holder?: string): KernelTables {
  const root = t.testdir({
    mountinfo,
    swaps: 'Filename\tType\n',
    sys: {
      block: {},
      dev: { block: {} },
      devices: {
        sda: {
          dev: '8:0\n',
          holders: {},
          sda1: { dev: '8:1\n', partition: '1\n', holders: {} },
          sda2: {
            dev: '8:2\n',
            partition: '2\n',
            holders: holder === undefined ? {} : { [holder]: {} },
          },
        },
        sdb: { dev: '8:16\n', holders: {} },
      },
    },
  });
  const devices = { '8:0': 'sda', '8:1': 'sda/sda1', '8:2': 'sda/sda2', '8:16': 'sdb' };
  for (const [number, place] of Object.entries(devices)) {
    symlinkSync(`../../devices/${place}`, join(root, 'sys/dev/block', number));
  }
  return {
    mountinfoPath: join(root, 'mountinfo'),
    swapsPath: join(root, 'swaps'),
    sysPath: join(root, 'sys'),
  };
}

const MOUNTED = '29 1 8:1 / /mnt/with\\040space rw,relatime shared:1 - ext4 /dev/none rw\n';

t.test('a mount is found from the partition and from its disk, not from others', async (t) => {
  const kernel = tables(t, MOUNTED);
  t.equal(await blockDeviceUse('8:1', kernel), 'mounted at /mnt/with space');
  t.equal(await blockDeviceUse('8:0', kernel), 'mounted at /mnt/with space');
  t.equal(await blockDeviceUse('8:2', kernel), undefined, 'a sister partition');
  t.equal(await blockDeviceUse('8:16', kernel), undefined, 'another disk');
});

t.test('a mounted disk is found from its partition', async (t) => {
  const kernel = tables(t, MOUNTED.replace('8:1', '8:0'));
  t.equal(await blockDeviceUse('8:2', kernel), 'mounted at /mnt/with space');
});

t.test('a holder is found from the partition and from its disk', async (t) => {
  const kernel = tables(t, '', 'dm-0');
  t.equal(await blockDeviceUse('8:2', kernel), 'held by dm-0');
  t.equal(await blockDeviceUse('8:0', kernel), 'held by dm-0');
  t.equal(await blockDeviceUse('8:1', kernel), undefined);
});

t.test('a file behind a loop device, and a swap file', async (t) => {
  const root = t.testdir({
    image: 'image',
    swapfile: 'swap',
    free: 'free',
    sys: { block: { loop3: { loop: { backing_file: '' } }, loop4: {}, sda: {} } },
  });
  writeFileSync(join(root, 'sys/block/loop3/loop/backing_file'), `${join(root, 'image')}\n`);
  writeFileSync(join(root, 'swaps'), `Filename\tType\n${join(root, 'swapfile')}\tfile\t1\n`);
  const kernel = {
    mountinfoPath: join(root, 'absent'),
    swapsPath: join(root, 'swaps'),
    sysPath: join(root, 'sys'),
  };
  t.equal(await fileUse(statSync(join(root, 'image')), kernel), 'attached as /dev/loop3');
  t.equal(await fileUse(statSync(join(root, 'swapfile')), kernel), 'used as swap');
  t.equal(await fileUse(statSync(join(root, 'free')), kernel), undefined);
});

t.test('mountinfo and device numbers', (t) => {
  t.same(parseMountinfo(`${MOUNTED}garbage\n`), [
    { device: '8:1', mountPoint: '/mnt/with space', source: '/dev/none' },
  ]);
  t.equal(deviceNumber(0x0801), '8:1');
  t.equal(deviceNumber(2 ** 20 + 259 * 2 ** 8 + 3), '259:259');
  t.equal(deviceNumber(statSync('/dev/null').rdev), '1:3');
  t.end();
});
