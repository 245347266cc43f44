/**
 * Goal: requests of 512 bytes work on a volume that prefers 4096: at any sector, of any number of sectors, several
 * sectors of one page in flight at once and over two connections, and none damages its neighbours; also while
 * the sectors' tracks are being saved for a backup.
 *
 * Method: libnbd's Python binding keeps its own copy of what the volume must hold, from a seed that is printed;
 * qemu-io, which reads the least request size from the server, writes single sectors itself.
 */
import t from 'tap';
import { must, mustCowbell, startCowbell } from './support/process.ts';
import { requirePython, runPython } from './support/python.ts';
import { serveVolume } from './support/served.ts';
import { requireTools } from './support/tools.ts';

const RANDOM_REQUESTS = `
import json, nbd, random, sys
uri, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
handles = [nbd.NBD(), nbd.NBD()]
for h in handles:
    h.set_strict_mode(0)
    h.connect_uri(uri)
h = handles[0]
sizes = [h.get_block_size(nbd.SIZE_MINIMUM), h.get_block_size(nbd.SIZE_PREFERRED)]
size = h.get_size()
random.seed(seed)
held = bytearray(h.pread(size, 0))
wrong = []
def drain():
    for h in handles:
        while h.aio_in_flight() > 0:
            h.poll(-1)
for step in range(count):
    # Each sector of some pages, in any order, in flight together on two connections.
    start = random.randrange(size // 512 - 32)
    sectors = random.sample(range(start, start + 32), 24)
    for sector in sectors:
        fill = random.randrange(256)
        held[sector * 512:sector * 512 + 512] = bytes([fill]) * 512
        buffer = nbd.Buffer.from_bytearray(bytearray([fill]) * 512)
        flags = nbd.CMD_FLAG_FUA if random.random() < 0.1 else 0
        random.choice(handles).aio_pwrite(buffer, sector * 512, lambda error: 1, flags)
    drain()
    # Ranges that begin and end in the middle of a page.
    offset = 512 * random.randrange(size // 512 - 64)
    length = 512 * random.randrange(1, 64)
    what = random.randrange(4)
    if what == 0:
        held[offset:offset + length] = bytes([step % 256]) * length
        h.pwrite(bytes([step % 256]) * length, offset)
    elif what == 1:
        held[offset:offset + length] = bytes(length)
        h.zero(length, offset)
    elif what == 2:
        held[offset:offset + length] = bytes(length)
        h.zero(length, offset, nbd.CMD_FLAG_NO_HOLE)
    got = random.choice(handles).pread(length, offset)
    if got != bytes(held[offset:offset + length]):
        wrong.append([step, offset, length])
h.flush()
if h.pread(size, 0) != bytes(held):
    wrong.append('at the end')
print(json.dumps({'sizes': sizes, 'wrong': wrong}))
`;

const seed = Number(process.env['COWBELL_SEED'] ?? Math.floor(Math.random() * 2 ** 32));
const play = (uri: string, count: number): Promise<unknown> =>
  runPython(RANDOM_REQUESTS, uri, String(seed), String(count));

t.test('sectors at random, over two connections', async (t) => {
  if (!(await requirePython(t))) return;
  t.comment(`COWBELL_SEED=${seed}`);
  const { uri, server } = await serveVolume(t, { size: '4M' });
  t.same(await play(uri, 300), { sizes: [512, 4096], wrong: [] });
  t.equal((await server.stop()).status, 0);
});

t.test('sectors at random while backups are taken', async (t) => {
  if (!(await requirePython(t)) || !requireTools(t, ['nbdcopy'])) return;
  t.comment(`COWBELL_SEED=${seed}`);
  const { at, volume, uri, server } = await serveVolume(t, { size: '16M' });
  await must('dd', ['if=/dev/urandom', `of=${at('in.raw')}`, 'bs=1M', 'count=16']);
  await must('nbdcopy', ['--flush', at('in.raw'), uri]);
  await mustCowbell(['store', 'init', at('store')]);
  const backUp = (): Promise<string> => mustCowbell(['backup', '--store', at('store'), volume]);
  const first = startCowbell(['--json', 'backup', '--store', at('store'), volume]);
  await first.waitForLine(/"event":"progress"/);
  t.same(await play(uri, 200), { sizes: [512, 4096], wrong: [] });
  t.equal((await first.wait()).status, 0);
  await Promise.all([backUp(), play(uri, 100)]);
  await backUp();
  await must('nbdcopy', [uri, at('now.raw')]);
  await mustCowbell(['restore', at('store'), 'latest', at('out.raw')]);
  await must('cmp', [at('now.raw'), at('out.raw')]);
  t.equal((await server.stop()).status, 0);
});

t.test('qemu-io writes and reads single sectors', async (t) => {
  if (!requireTools(t, ['qemu-io'])) return;
  const { uri, server } = await serveVolume(t, { size: '4M' });
  const io = (...commands: string[]): Promise<string> =>
    must('qemu-io', ['-f', 'raw', ...commands.flatMap((command) => ['-c', command]), uri]);
  const written = await io(
    'write -P 1 0 16k',
    ...[1, 2, 4, 7, 9].map((sector) => `write -P ${sector + 16} ${sector * 512} 512`),
    'write -f -P 99 11776 512',
    'write -z 3072 512',
    'writev -P 77 12800 512 512 512',
    'flush',
  );
  t.notMatch(written, /failed|error/i);
  const read = await io(
    ...[1, 2, 4, 7, 9].map((sector) => `read -P ${sector + 16} ${sector * 512} 512`),
    ...[0, 3, 5, 8, 10].map((sector) => `read -P 1 ${sector * 512} 512`),
    'read -P 0 3072 512',
    'read -P 99 11776 512',
    'read -P 1 12288 512',
    'read -P 77 12800 1536',
    'read -P 1 14336 2048',
  );
  t.notMatch(read, /failed|verification/i);
  t.equal((await server.stop()).status, 0);
});
