/*
 * The job whose state must survive what the suite does to its coordination service.
 *
 * A checkpointed source emits 0, 1, 2, … at a bounded rate. Element n belongs to key n mod KEYS,
 * whose keyed state holds how many elements it saw and their sum. One line per element,
 * "key n count sum", leaves through a sink that commits files with the checkpoint that covers them.
 *
 * The source's position and the keyed state are restored from the same checkpoint or not at all, so
 * every line is predictable: count = n / KEYS + 1. The suite checks that over the committed files.
 * The job itself must never check, repair or skip anything: it would hide what the suite looks for.
 */

import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.functions.OpenContext;
import org.apache.flink.api.common.serialization.SimpleStringEncoder;
import org.apache.flink.api.common.state.ValueState;
import org.apache.flink.api.common.state.ValueStateDescriptor;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.api.connector.source.lib.NumberSequenceSource;
import org.apache.flink.connector.file.sink.FileSink;
import org.apache.flink.core.fs.Path;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.KeyedProcessFunction;
import org.apache.flink.streaming.api.functions.sink.filesystem.rollingpolicies.OnCheckpointRollingPolicy;
import org.apache.flink.util.Collector;

/** Arguments: output directory, number of keys, pause after each element in milliseconds. */
public final class ExactlyOnceJob {

    private ExactlyOnceJob() {}

    public static void main(String[] arguments) throws Exception {
        String output = arguments[0];
        long keys = Long.parseLong(arguments[1]);
        long pauseMs = Long.parseLong(arguments[2]);

        FileSink<String> sink =
                FileSink.forRowFormat(new Path(output), new SimpleStringEncoder<String>("UTF-8"))
                        .withRollingPolicy(OnCheckpointRollingPolicy.build())
                        .build();

        StreamExecutionEnvironment environment =
                StreamExecutionEnvironment.getExecutionEnvironment();
        environment
                .fromSource(
                        new NumberSequenceSource(0, Long.MAX_VALUE),
                        WatermarkStrategy.noWatermarks(),
                        "sequence")
                // One reader: with more, "the position of the source" would be several numbers.
                .setParallelism(1)
                .map(
                        n -> {
                            Thread.sleep(pauseMs);
                            return n;
                        })
                .returns(Types.LONG)
                .setParallelism(1)
                .keyBy(n -> n % keys, Types.LONG)
                .process(new CountAndSum())
                .returns(Types.STRING)
                .sinkTo(sink);
        environment.execute("exactly-once");
    }

    /** The running count and sum of one key. */
    private static final class CountAndSum extends KeyedProcessFunction<Long, Long, String> {

        private static final long serialVersionUID = 1;

        private transient ValueState<Long> count;
        private transient ValueState<Long> sum;

        @Override
        public void open(OpenContext context) {
            count = getRuntimeContext().getState(new ValueStateDescriptor<>("count", Types.LONG));
            sum = getRuntimeContext().getState(new ValueStateDescriptor<>("sum", Types.LONG));
        }

        @Override
        public void processElement(Long n, Context context, Collector<String> out)
                throws Exception {
            long newCount = orZero(count.value()) + 1;
            long newSum = orZero(sum.value()) + n;
            count.update(newCount);
            sum.update(newSum);
            out.collect(context.getCurrentKey() + " " + n + " " + newCount + " " + newSum);
        }

        private static long orZero(Long value) {
            return value == null ? 0 : value;
        }
    }
}
