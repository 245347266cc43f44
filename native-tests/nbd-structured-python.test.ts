/**
 * Goal: libnbd takes the structured replies and block status of a volume: fragments of a large read, one
 * fragment where it asks for one, errors, hints, and several contexts at once.
 *
 * Method: libnbd's Python binding, with its own checks of requests switched off. The script prints what it
 * found as JSON.
 */
import t from 'tap';
import { requirePython, runPython } from './support/python.ts';
import { serveVolume } from './support/served.ts';

const SCRIPT = `
import errno, json, nbd, sys
MIB = 1048576
point = 'cowbell:changed-since:00'
h = nbd.NBD()
h.set_strict_mode(0)
h.add_meta_context('base:allocation')
h.add_meta_context(point)
h.add_meta_context('qemu:dirty-bitmap:nobody')
h.connect_uri(sys.argv[1])
def refusal(call, *words):
    try:
        call(*words)
    except nbd.Error as error:
        return errno.errorcode.get(error.errnum, error.errnum)
    return None
h.pwrite(b'a' * MIB, 4 * MIB)
def pieces(flags):
    found = []
    def piece(data, offset, status, error):
        found.append([offset, len(data), {nbd.READ_DATA: 'data', nbd.READ_HOLE: 'hole'}[status]])
    content = h.pread_structured(8 * MIB, 0, piece, flags)
    return [found, content == bytes(4 * MIB) + b'a' * MIB + bytes(3 * MIB)]
def status(length, offset, flags=0):
    found = {}
    def extents(context, at, entries, error):
        found[context] = entries
    h.block_status(length, offset, extents, flags)
    return found
print(json.dumps({
    'structured': h.get_structured_replies_negotiated(),
    'offers': [h.can_df(), h.can_cache(), h.can_fast_zero()],
    'contexts': [h.can_meta_context('base:allocation'), h.can_meta_context(point),
                 h.can_meta_context('qemu:dirty-bitmap:nobody')],
    'fragments': sorted(pieces(0)[0]), 'equal': pieces(0)[1],
    'whole': pieces(nbd.CMD_FLAG_DF),
    'status': status(8 * MIB, 3 * MIB),
    'one': status(8 * MIB, 3 * MIB, nbd.CMD_FLAG_REQ_ONE),
    'refused': {
        'status across the end': refusal(status, MIB, 16 * MIB - 512),
        'status of nothing': refusal(status, 0, 0),
        'read across the end': refusal(h.pread, MIB, 16 * MIB - 512),
        'fast zeroes without holes': refusal(h.zero, MIB, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE),
    },
    'fast': refusal(h.zero, MIB, 4 * MIB, nbd.CMD_FLAG_FAST_ZERO),
    'cache': refusal(h.cache, 16 * MIB, 0),
    'gone': h.pread(MIB, 4 * MIB) == bytes(MIB),
}))
`;

t.test('structured reads, block status, fast zeroes and cache hints', async (t) => {
  if (!(await requirePython(t))) return;
  const { uri } = await serveVolume(t, { size: '16M' });
  const MIB = 1_048_576;
  const changed = 'cowbell:changed-since:00';
  t.same(await runPython(SCRIPT, uri), {
    structured: true,
    offers: [true, true, true],
    contexts: [true, true, false],
    fragments: [
      [0, 4 * MIB, 'hole'],
      [4 * MIB, MIB, 'data'],
      [5 * MIB, 3 * MIB, 'hole'],
    ],
    equal: true,
    whole: [[[0, 8 * MIB, 'data']], true],
    status: {
      'base:allocation': [MIB, 3, MIB, 0, 6 * MIB, 3],
      [changed]: [8 * MIB, 1],
    },
    one: { 'base:allocation': [MIB, 3], [changed]: [8 * MIB, 1] },
    refused: {
      'status across the end': 'EINVAL',
      'status of nothing': 'EINVAL',
      'read across the end': 'EINVAL',
      'fast zeroes without holes': 'ENOTSUP',
    },
    fast: null,
    cache: null,
    gone: true,
  });
});
