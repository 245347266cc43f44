/**
 * Goal: the client, and the device made of it, understand servers that were not written here: structured
 * replies, block status, errors with their sentences.
 *
 * Method: nbdkit and qemu-nbd over a sparse file; the same requests to both. What they offer is what Debian 12
 * has: structured replies, no extended headers.
 */
import { closeSync, ftruncateSync, openSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { NbdClient, openNbdDevice } from '../src/nbd/index.ts';
import { listening } from './support/listening.ts';
import { Running, temporaryDirectory } from './support/process.ts';
import { requireTools } from './support/tools.ts';

const MIB = 1_048_576;

const SERVERS: Record<string, (socket: string, path: string) => string[]> = {
  nbdkit: (socket, path) => ['-f', '-U', socket, 'file', path],
  'qemu-nbd': (socket, path) => ['-f', 'raw', '-t', '-k', socket, path],
};

for (const [tool, words] of Object.entries(SERVERS)) {
  t.test(`the client of ${tool}`, async (t) => {
    if (!requireTools(t, [tool])) return;
    const directory = temporaryDirectory(t);
    const [socket, path] = [join(directory, 'peer.sock'), join(directory, 'disk.raw')];
    const file = openSync(path, 'w');
    ftruncateSync(file, 16 * MIB);
    closeSync(file);
    const server = new Running(tool, words(socket, path));
    t.teardown(() => server.stop('SIGKILL'));
    await listening(socket, server);

    const target = `nbd+unix:///?socket=${socket}`;
    const client = await NbdClient.connect(target, { contexts: ['base:allocation', 'x-none:such'] });
    t.equal(client.replies, 'structured');
    t.same(client.contexts, ['base:allocation']);
    const content = Buffer.alloc(MIB, 'cowbell');
    await client.write(content, 4 * MIB, { fua: true });
    const back = Buffer.alloc(16 * MIB, 9);
    await client.read(back, 0);
    t.ok(
      back.equals(Buffer.concat([Buffer.alloc(4 * MIB), content, Buffer.alloc(11 * MIB)])),
      'holes and data',
    );
    const status = await client.blockStatus(4 * MIB, 8 * MIB, { requestOne: true });
    t.same(status.get('base:allocation'), [{ lengthBytes: MIB, flags: 0 }]);
    await t.rejects(client.read(Buffer.alloc(512), 16 * MIB), { code: 'invalid-request' });
    await client.read(back, 0);
    await client.disconnect();

    const device = await openNbdDevice(target);
    t.ok(device.capabilities.extents);
    t.same(
      (await device.extents(MIB, 15 * MIB)).map((extent) => [
        extent.offsetBytes,
        extent.lengthBytes,
        extent.zero,
      ]),
      [
        [MIB, 3 * MIB, true],
        [4 * MIB, MIB, false],
        [5 * MIB, 11 * MIB, true],
      ],
    );
    await device.close();
  });
}
