/** Goal: what is joined to one write is exactly what follows in memory and on the target. Method: single cases. */

import t from 'tap';
import { LIMITS } from '../base/index.ts';
import { ModelTarget } from './model.fixture.ts';
import { WriteRow } from './write-row.ts';

const target = { name: 'a', device: new ModelTarget(Buffer.alloc(512)), knownZero: false };
const frame = Buffer.from('abcdefgh'.repeat(512));
const part = (from: number, to: number): Buffer => frame.subarray(from, to);

t.test('pieces in a row', (t) => {
  const row = new WriteRow({ target, targetOffsetBytes: 1000 }, part(0, 512));
  const longer = row.with({ target, targetOffsetBytes: 1512 }, part(512, 2048));
  t.equal(longer?.targetOffsetBytes, 1000);
  t.ok(longer?.bytes.equals(part(0, 2048)));
  t.equal(longer?.bytes.buffer, frame.buffer, 'not copied');
  t.end();
});

t.test('pieces that do not follow', (t) => {
  const row = new WriteRow({ target, targetOffsetBytes: 1000 }, part(0, 512));
  const other = { ...target };
  t.equal(row.with({ target, targetOffsetBytes: 1513 }, part(512, 1024)), undefined, 'a gap on the target');
  t.equal(row.with({ target: other, targetOffsetBytes: 1512 }, part(512, 1024)), undefined, 'another target');
  t.equal(row.with({ target, targetOffsetBytes: 1512 }, part(1024, 2048)), undefined, 'a gap in memory');
  t.equal(
    row.with({ target, targetOffsetBytes: 1512 }, Buffer.from(part(512, 1024))),
    undefined,
    'other memory',
  );
  const most = Buffer.alloc(LIMITS.restoreWriteBytesMax + 512);
  const whole = new WriteRow({ target, targetOffsetBytes: 0 }, most.subarray(0, -512));
  t.equal(
    whole.with({ target, targetOffsetBytes: most.length - 512 }, most.subarray(-512)),
    undefined,
    'too much',
  );
  t.end();
});
